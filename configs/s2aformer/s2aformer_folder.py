# S2AFormer on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/s2aformer/s2aformer_folder.py
# Trains s2aformer_tiny unless told otherwise: --cfg-options name=s2aformer_small max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:s2aformer_tiny}}"
