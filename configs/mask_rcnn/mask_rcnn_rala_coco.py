# RAVLT in Mask R-CNN on COCO. Published AP of boxes / masks: ravlt_t 47.3 / 42.7, ravlt_s 49.8 / 44.6,
# ravlt_b 51.2 / 45.7, ravlt_l 52.3 / 46.4.
# The drop path is ours.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:ravlt_t}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
