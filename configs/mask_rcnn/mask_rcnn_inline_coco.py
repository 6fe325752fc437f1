# InLine-PVT, -Swin or -CSwin in Mask R-CNN on COCO. The paper has InLine-PVT and InLine-Swin there; we have not seen
# its figures.
# The drop path is ours.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:inline_pvt_t}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
