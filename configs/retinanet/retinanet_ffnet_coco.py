# FFNet in RetinaNet on COCO. Published for Cascade Mask R-CNN alone, whose drop path, batch norms and rates of
# layers these are (see Mask R-CNN's).
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:ffnet_2}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.35, norm_eval=False))
sync_bn = "torch"  # batch norms of several GPUs take their statistics together
optim_wrapper = dict(
    constructor="attlas.LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=dict(ffnet_1=0.82, ffnet_2=0.89, ffnet_3=0.92, ffnet_4=0.93).get(name[:7], 0.8)),
)
