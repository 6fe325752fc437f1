# SHViT in Semantic FPN on ADE20K. Three maps of strides 16 to 64 make the pyramid.
# Nothing was published for it.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:shvit_s4}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=2),
    decode_head=dict(in_index=[0, 1, 2, 3, 4], feature_strides=[4, 8, 16, 32, 64]),
)
