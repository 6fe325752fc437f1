# SHViT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/shvit/shvit_folder.py
# Trains shvit_s1 unless told otherwise: --cfg-options name=shvit_s4 max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:shvit_s1}}"
