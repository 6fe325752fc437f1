# AttNet in RetinaNet on COCO. Nothing was published for it.
# The drop path is ours.
_base_ = "../_base_/retinanet.py"

name = "{{$BACKBONE:attnet_t2}}"
model = dict(backbone=dict(drop_path_rate=0.1))
