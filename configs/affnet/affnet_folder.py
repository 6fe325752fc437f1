# AFFNet on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/affnet/affnet_folder.py
# Trains affnet_et unless told otherwise: --cfg-options name=affnet_t max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:affnet_et}}"
