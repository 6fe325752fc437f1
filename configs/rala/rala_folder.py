# RAVLT on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/rala/rala_folder.py
# Trains ravlt_t unless told otherwise: --cfg-options name=ravlt_s max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:ravlt_t}}"
