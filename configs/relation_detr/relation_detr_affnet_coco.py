# AFFNet in Relation-DETR on COCO. Nothing was published for it.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:affnet}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3))  # as its weights are trained
