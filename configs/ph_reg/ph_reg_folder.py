# A plain vision transformer with registers on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/ph_reg/ph_reg_folder.py
# Trains ph_reg_clip_base_patch16 unless told otherwise: --cfg-options name=ph_reg_dinov2_base pretrained=weights.pth
# pretrained takes a student's file, or that of the plain transformer, to which it adds the registers.
_base_ = "../_base_/image_folder.py"

name = "{{$BACKBONE:ph_reg_clip_base_patch16}}"
