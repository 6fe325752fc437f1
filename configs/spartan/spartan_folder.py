# SpaRTAN on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/spartan/spartan_folder.py
# Trains spartan_t unless told otherwise: --cfg-options name=spartan_t max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:spartan_t}}"
