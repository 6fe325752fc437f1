# BiFormer in RetinaNet on COCO. Published box AP: biformer_small 45.9, biformer_base 47.1.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:biformer_small}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.2))
