# SHViT in RetinaNet on COCO. Published box AP: shvit_s4 38.8.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:shvit_s4}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(
    backbone=dict(out_indices=(0, 1, 2)),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=1),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
