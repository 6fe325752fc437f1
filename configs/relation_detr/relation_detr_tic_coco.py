# TiC in Relation-DETR on COCO. Nothing was published for it.
# The drop path is ours.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:tic_tiny}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
