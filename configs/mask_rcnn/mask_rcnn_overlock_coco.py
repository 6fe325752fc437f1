# OverLoCK in Mask R-CNN on COCO. Published AP of boxes / masks: overlock_t 48.3 / 43.3,
# overlock_s 49.4 / 44.0 (drop path 0.4), overlock_b 49.9 / 44.4 (0.6).
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:overlock_t}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.2))
