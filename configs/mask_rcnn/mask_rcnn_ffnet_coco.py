# FFNet in Mask R-CNN on COCO. Published for Cascade Mask R-CNN alone, AP of boxes / masks in 36 epochs: ffnet_2
# 51.8 / 44.9, ffnet_3 52.8 / 45.6 (drop path 0.6), ffnet_4_img384 53.4 / 45.9. The drop path is that of ffnet_2 there;
# its weights had learned from a teacher: give such a file as pretrained.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:ffnet_2}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.35))
