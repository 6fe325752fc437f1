# SHViT in UperNet on ADE20K. Three maps of strides 16 to 64 make the pyramid.
# Nothing was published for it.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:shvit_s4}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(
    neck=dict(type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=2),
    decode_head=dict(in_index=[0, 1, 2, 3, 4]),
)
