# L2ViT in Mask R-CNN on COCO, as the authors' configs, whose figures are in the paper alone. They train on images of
# several sizes, which this config does not. As there, batch norms take the statistics of their images.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:l2vit_tiny}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(norm_eval=False, drop_path_rate=0.2 if "base" in name else 0.1))
