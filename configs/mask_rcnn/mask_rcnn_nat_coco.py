# NAT and DiNAT in Mask R-CNN on COCO. Published AP of boxes / masks in 36 epochs: nat_mini 46.5 / 41.7,
# nat_tiny 47.7 / 42.6, nat_small 48.4 / 43.2, dinat_mini 47.2 / 42.5, dinat_tiny 48.6 / 43.5, dinat_small 49.3 / 44.0.
# The drop path is ours.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:nat_mini}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
