# BiFormer in RetinaNet on COCO. Published box AP: biformer_small 45.9, biformer_base 47.1.
_base_ = "../_base_/retinanet.py"

name = "{{$BACKBONE:biformer_small}}"
model = dict(backbone=dict(drop_path_rate=0.2))
