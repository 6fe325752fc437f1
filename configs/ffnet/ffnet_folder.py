# FFNet on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/ffnet/ffnet_folder.py
# Trains ffnet_1 unless told otherwise: --cfg-options name=ffnet_2 max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:ffnet_1}}"
