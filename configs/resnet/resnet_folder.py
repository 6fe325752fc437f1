# ResNet on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/resnet/resnet_folder.py
# Trains resnet50 unless told otherwise: --cfg-options name=resnet18 max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:resnet50}}"
