# HaloNet in Mask R-CNN on COCO. Published for ResNet hybrids, without figures at hand.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:halonet50ts}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
