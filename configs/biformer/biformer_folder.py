# BiFormer on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/biformer/biformer_folder.py
# Trains biformer_tiny unless told otherwise: --cfg-options name=biformer_small max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:biformer_tiny}}"
