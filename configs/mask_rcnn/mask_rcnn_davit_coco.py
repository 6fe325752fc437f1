# DaViT in Mask R-CNN on COCO. Published AP of boxes / masks: davit_tiny 45.0 / 41.1, davit_small 47.7 / 42.9,
# davit_base 48.2 / 43.3, trained on images of several sizes, which this config does not.
# The drop path is ours.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:davit_tiny}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
