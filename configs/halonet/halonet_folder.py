# HaloNet on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/halonet/halonet_folder.py
# Trains halonet26t unless told otherwise: --cfg-options name=halonet50ts max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:halonet26t}}"
