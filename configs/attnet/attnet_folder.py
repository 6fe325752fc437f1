# AttNet on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/attnet/attnet_folder.py
# Trains attnet_xxs unless told otherwise: --cfg-options name=attnet_t1 max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:attnet_xxs}}"
