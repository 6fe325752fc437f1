# SHViT in Mask R-CNN on COCO. Published AP of boxes / masks: shvit_s4 39.0 / 35.9.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:shvit_s4}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=2)
)
