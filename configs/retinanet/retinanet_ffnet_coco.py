# FFNet in RetinaNet on COCO. Published for Cascade Mask R-CNN alone, whose drop path this is.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:ffnet_2}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.35))
