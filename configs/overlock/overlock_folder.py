# OverLoCK on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/overlock/overlock_folder.py
# Trains overlock_xt unless told otherwise: --cfg-options name=overlock_t max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:overlock_xt}}"
