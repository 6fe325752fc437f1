# HorNet in Mask R-CNN on COCO. Published for Cascade Mask R-CNN alone.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:hornet_tiny_7x7}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.4))
