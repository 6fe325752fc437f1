# HyperZZW in Semantic FPN on ADE20K. Patches of 16 pixels and resized kernels are ours. The last map makes the
# pyramid. Nothing was published for it.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:hyperzzw_cifar100}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(
    backbone=dict(out_indices=(4,), img_size=512, patch_size=16, any_size=True),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=4, upsample=2),
)
