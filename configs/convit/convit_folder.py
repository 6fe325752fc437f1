# ConViT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/convit/convit_folder.py
# Trains convit_tiny unless told otherwise: --cfg-options name=convit_small max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:convit_tiny}}"
