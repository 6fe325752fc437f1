# RVT with token-aware pooling in Semantic FPN on ADE20K. Its maps of strides 16 and 32 make the pyramid. Nothing was
# published for it. The drop path is ours.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:tap_rvt_tiny}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(
    backbone=dict(drop_path_rate=0.1),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=4, upsample=2),
)
