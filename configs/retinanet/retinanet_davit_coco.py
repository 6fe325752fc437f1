# DaViT in RetinaNet on COCO. Published box AP: davit_tiny 44.0, davit_small 46.0, davit_base 46.7,
# trained with weight decay 0.05 on images of several sizes, which this config does not.
# The drop path is ours.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:davit_tiny}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
