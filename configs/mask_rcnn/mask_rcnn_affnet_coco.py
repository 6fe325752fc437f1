# AFFNet in Mask R-CNN on COCO. The authors have code for it, no figures.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:affnet}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3))  # as its weights are trained
