# CrossViT in Semantic FPN on ADE20K. The dense form, and so its place here, is ours.
# The small patches give the map of stride 8, the large ones that of stride 16; the neck makes the others.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:crossvit_tiny}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(
    backbone=dict(drop_path_rate=0.1),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=4, upsample=1),
)
