# L2ViT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/l2vit/l2vit_folder.py
# Trains l2vit_tiny unless told otherwise: --cfg-options name=l2vit_small max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:l2vit_tiny}}"
