# CAS-ViT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/cas_vit/cas_vit_folder.py
# Trains cas_vit_xs unless told otherwise: --cfg-options name=cas_vit_s max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:cas_vit_xs}}"
