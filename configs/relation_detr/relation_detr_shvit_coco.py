# SHViT in Relation-DETR on COCO. Its finest map has stride 16, and the neck makes one of 8. Nothing was published
# for it.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:shvit_s4}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(
    backbone=dict(out_indices=(0, 1, 2)),
    neck=dict(
        _delete_=True,
        type="attlas.UpsampledFPN",
        in_channels="auto",
        out_channels=256,
        num_outs=4,
        upsample=1,
        norm_cfg=dict(type="GN", num_groups=32),
    ),
)
