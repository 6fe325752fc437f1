# HaloNet in RetinaNet on COCO. Nothing was published for it.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:halonet50ts}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
