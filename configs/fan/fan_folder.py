# FAN with token-aware pooling on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/fan/fan_folder.py
# Trains tap_fan_tiny_12_p16 unless told otherwise:
#   --cfg-options name=tap_fan_base_16_hybrid max_epochs=30 pretrained=weights.pth model.diversification=1.0
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:tap_fan_tiny_12_p16}}"
