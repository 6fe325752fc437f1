# HyperZZW in Relation-DETR on COCO. Patches of 16 pixels and resized kernels are ours. The last map makes the
# pyramid. Nothing was published for it.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:hyperzzw_cifar100}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(
    backbone=dict(out_indices=(4,), img_size=800, patch_size=16, any_size=True, norm_eval=False),
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
