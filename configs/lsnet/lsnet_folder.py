# LSNet on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/lsnet/lsnet_folder.py
# Trains lsnet_t unless told otherwise: --cfg-options name=lsnet_s max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:lsnet_t}}"
