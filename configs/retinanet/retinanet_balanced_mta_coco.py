# Balanced multi-task attention in RetinaNet on COCO. Nothing was published for it.
# The stem has the stride of 4 that large pictures ask for, and DropBlock is off.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:balanced_mta_12}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(strides=(4, 8, 16, 32), drop_block=0.0))
