# MobileNetV2 in RetinaNet on COCO, a host for plug-ins: --cfg-options model.backbone.plugins=ELA
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:mobilenet_v2}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(out_indices=(2, 4, 6)))
