# HaloNet in Relation-DETR on COCO. Nothing was published for it.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:halonet50ts}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
