# BiFormer in Mask R-CNN on COCO. Published AP of boxes / masks: biformer_small 47.8 / 43.2, biformer_base 48.6 / 43.7.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:biformer_small}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.2))
