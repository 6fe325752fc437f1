# MobileNetV2 in Mask R-CNN on COCO, a host for plug-ins: --cfg-options model.backbone.plugins=ELA
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:mobilenet_v2}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(out_indices=(1, 2, 4, 6)))
