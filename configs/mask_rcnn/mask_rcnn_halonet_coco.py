# HaloNet in Mask R-CNN on COCO. Published for ResNet hybrids, without figures at hand.
_base_ = "../_base_/mask_rcnn.py"

name = "{{$BACKBONE:halonet50ts}}"
