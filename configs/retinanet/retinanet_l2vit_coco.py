# L2ViT in RetinaNet on COCO, as the authors' configs, whose figures are in the paper alone. They train on images of
# several sizes, which this config does not. As there, batch norms take the statistics of their images.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:l2vit_tiny}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(norm_eval=False, drop_path_rate=0.2 if "base" in name else 0.1))
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
