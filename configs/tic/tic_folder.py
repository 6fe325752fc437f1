# TiC on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/tic/tic_folder.py
# Trains tic_tiny unless told otherwise: --cfg-options name=tic_small max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:tic_tiny}}"
