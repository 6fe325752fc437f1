# HorNet in RetinaNet on COCO. Published for Cascade Mask R-CNN alone.
_base_ = "../_base_/retinanet.py"

name = "{{$BACKBONE:hornet_tiny_7x7}}"
model = dict(backbone=dict(drop_path_rate=0.4))
