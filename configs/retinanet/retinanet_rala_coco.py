# RAVLT in RetinaNet on COCO. Published box AP: ravlt_t 45.9, ravlt_s 48.3, ravlt_b 49.8, ravlt_l 50.9.
# The drop path is ours.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:ravlt_t}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
