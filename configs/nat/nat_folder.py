# NAT and DiNAT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/nat/nat_folder.py
# Trains nat_mini unless told otherwise: --cfg-options name=dinat_mini max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:nat_mini}}"
