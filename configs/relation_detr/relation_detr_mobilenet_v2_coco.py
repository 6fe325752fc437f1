# MobileNetV2 in Relation-DETR on COCO, a host for plug-ins: --cfg-options model.backbone.plugins=ELA
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:mobilenet_v2}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(backbone=dict(out_indices=(2, 4, 6)))
