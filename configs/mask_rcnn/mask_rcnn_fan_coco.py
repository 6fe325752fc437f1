# FAN with token-aware pooling in Mask R-CNN on COCO. Its maps of strides 4, 8 and 16 make the pyramid. Nothing was
# published for it. The drop path is ours.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:tap_fan_base_16_hybrid}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(
    backbone=dict(out_indices=(0, 1, 3), drop_path_rate=0.1),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=0),
)
