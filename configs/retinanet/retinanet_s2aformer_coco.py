# S2AFormer in RetinaNet on COCO. The authors' sizes and figures were out of reach; the variants are ours.
# Weight decay and drop path are ours.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:s2aformer_tiny}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
