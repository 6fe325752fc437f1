# OverLoCK in RetinaNet on COCO. Published for Mask R-CNN alone.
_base_ = "../_base_/retinanet.py"

name = "{{$BACKBONE:overlock_t}}"
model = dict(backbone=dict(drop_path_rate=0.2))
