# AFFNet in RetinaNet on COCO. Nothing was published for it (but for SSD).
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:affnet}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3))  # as its weights are trained
