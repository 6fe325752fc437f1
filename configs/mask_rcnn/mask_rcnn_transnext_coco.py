# TransNeXt in Mask R-CNN on COCO. Published AP of boxes / masks: transnext_tiny 49.9 / 44.6,
# transnext_small 51.1 / 45.5 (drop path 0.6), transnext_base 51.7 / 45.9 (0.7).
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:transnext_tiny}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(img_size=800, drop_path_rate=0.4))
