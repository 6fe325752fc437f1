# CAS-ViT in Mask R-CNN on COCO. Published AP of boxes / masks: cas_vit_xs 37.4 / 34.9, cas_vit_s 39.8 / 36.7,
# cas_vit_m 42.3 / 38.9, cas_vit_t 43.5 / 39.6.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:cas_vit_xs}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=dict(cas_vit_m=0.1, cas_vit_t=0.1).get(name, 0.0)))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
