# NAT and DiNAT in RetinaNet on COCO. Published for Mask R-CNN alone.
# The drop path is ours.
_base_ = "../_base_/retinanet.py"

name = "{{$BACKBONE:nat_mini}}"
model = dict(backbone=dict(drop_path_rate=0.1))
