# HorNet on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/hornet/hornet_folder.py
# Trains hornet_tiny_7x7 unless told otherwise: --cfg-options name=hornet_tiny_gf max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:hornet_tiny_7x7}}"
