# RVT with token-aware pooling on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/rvt/rvt_folder.py
# Trains tap_rvt_tiny unless told otherwise:
#   --cfg-options name=tap_rvt_base_plus max_epochs=30 pretrained=weights.pth model.diversification=1.0
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:tap_rvt_tiny}}"
