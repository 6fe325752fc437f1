# FAN with token-aware pooling in Relation-DETR on COCO. Its maps of strides 8 and 16 make the pyramid. Nothing was
# published for it. The drop path is ours.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:tap_fan_base_16_hybrid}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(
    backbone=dict(out_indices=(1, 3), drop_path_rate=0.1),
    neck=dict(
        _delete_=True,
        type="attlas.UpsampledFPN",
        in_channels="auto",
        out_channels=256,
        num_outs=4,
        upsample=0,
        norm_cfg=dict(type="GN", num_groups=32),
    ),
)
