# FFNet in Mask R-CNN on COCO. Published for Cascade Mask R-CNN alone, AP of boxes / masks in 36 epochs: ffnet_2
# 51.8 / 44.9, ffnet_3 52.8 / 45.6 (drop path 0.6), ffnet_4_img384 53.4 / 45.9. The drop path is that of ffnet_2 there;
# its weights had learned from a teacher: give such a file as pretrained. As there, batch norms learn from the images of
# all GPUs, and the learning rate falls towards the stem: by 0.8 for each of 12 layers. Every block is a layer here,
# and the decay such that the stem has the same rate.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:ffnet_2}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.35, norm_eval=False))
sync_bn = "torch"  # batch norms of several GPUs take their statistics together
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay=dict(ffnet_1=0.82, ffnet_2=0.89, ffnet_3=0.92, ffnet_4=0.93).get(name[:7], 0.8))
)
