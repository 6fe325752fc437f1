# LSNet in RetinaNet on COCO. Published box AP: lsnet_t 34.2, lsnet_s 36.5, lsnet_b 39.2.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:lsnet_t}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(neck=dict(start_level=0, add_extra_convs=False))
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
