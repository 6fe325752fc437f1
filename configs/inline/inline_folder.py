# InLine on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/inline/inline_folder.py
# Trains inline_pvt_t unless told otherwise: --cfg-options name=inline_swin_t max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:inline_pvt_t}}"
