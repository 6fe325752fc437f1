# ResNet in RetinaNet on COCO, a host for plug-ins: --cfg-options model.backbone.plugins=ELA
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:resnet50}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
