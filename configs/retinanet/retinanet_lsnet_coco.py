# LSNet in RetinaNet on COCO. Published box AP: lsnet_t 34.2, lsnet_s 36.5, lsnet_b 39.2.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:lsnet_t}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(out_indices=(0, 1, 2, 3)), neck=dict(add_extra_convs=False))
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
