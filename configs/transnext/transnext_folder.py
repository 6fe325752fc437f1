# TransNeXt on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/transnext/transnext_folder.py
# Trains transnext_micro unless told otherwise: --cfg-options name=transnext_tiny max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:transnext_micro}}"
