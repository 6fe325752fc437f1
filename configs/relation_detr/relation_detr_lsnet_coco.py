# LSNet in Relation-DETR on COCO. It has all four maps itself. Nothing was published for it.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:lsnet_t}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(backbone=dict(out_indices=(0, 1, 2, 3)))
