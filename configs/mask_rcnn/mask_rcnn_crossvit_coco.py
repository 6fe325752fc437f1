# CrossViT in Mask R-CNN on COCO. The dense form, and so its place here, is ours.
# The small patches give the map of stride 8, the large ones that of stride 16; the neck makes the others.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:crossvit_tiny}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(
    backbone=dict(drop_path_rate=0.1),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=1),
)
