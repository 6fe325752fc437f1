# MobileNetV2 on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/mobilenet_v2/mobilenet_v2_folder.py
# Trains mobilenet_v2 unless told otherwise: --cfg-options name=mobilenet_v2_ca max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:mobilenet_v2}}"
