# S2AFormer in Relation-DETR on COCO. No published figure is known.
# The drop path is ours.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:s2aformer_tiny}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
