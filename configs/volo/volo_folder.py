# VOLO on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/volo/volo_folder.py
# Trains volo_d1_224 unless told otherwise: --cfg-options name=volo_d2_224 max_epochs=30 pretrained=weights.pth
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:volo_d1_224}}"
