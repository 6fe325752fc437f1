# HaloNet in RetinaNet on COCO. Nothing was published for it.
_base_ = "../_base_/retinanet.py"

name = "{{$BACKBONE:halonet50ts}}"
