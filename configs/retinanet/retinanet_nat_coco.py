# NAT and DiNAT in RetinaNet on COCO. Published for Mask R-CNN alone.
# The drop path is ours.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:nat_mini}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
