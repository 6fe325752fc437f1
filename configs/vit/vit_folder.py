# A plain vision transformer on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/vit/vit_folder.py
# Trains deit_tiny unless told otherwise: --cfg-options name=dinov2_small max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:deit_tiny}}"
