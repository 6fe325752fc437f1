# SpaRTAN in RetinaNet on COCO. Published for RT-DETR alone, which neither mmdet nor this library has: 50.0 AP with 21.5
# million parameters. No weights to begin with are published for spartan_t: give a file, or None, as pretrained.
# The drop path is that of its classifier.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:spartan_t}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
