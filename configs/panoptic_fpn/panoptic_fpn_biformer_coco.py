# BiFormer in Panoptic FPN on COCO: things and stuff. Nothing was published for it.
# The drop path is that of its Mask R-CNN.
_base_ = ["../_base_/panoptic_fpn.py", "../_base_/coco_panoptic_1x.py"]

name = "{{$BACKBONE:biformer_small}}"
work_dir = f"work_dirs/panoptic_fpn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.2))
