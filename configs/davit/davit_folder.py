# DaViT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/davit/davit_folder.py
# Trains davit_tiny unless told otherwise: --cfg-options name=davit_small max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:davit_tiny}}"
