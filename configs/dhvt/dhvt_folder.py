# DHVT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/dhvt/dhvt_folder.py
# Trains dhvt_tiny_imagenet_patch16 unless told otherwise: --cfg-options name=dhvt_small_imagenet_patch16 max_epochs=100
# No weights to begin with were published; pretrained=weights.pth takes your own.
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:dhvt_tiny_imagenet_patch16}}"
