# FAN with token-aware pooling in UperNet on ADE20K. Its maps of strides 4, 8 and 16 make the pyramid. Nothing was
# published for it. The drop path is ours.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:tap_fan_base_16_hybrid}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(
    backbone=dict(out_indices=(0, 1, 3), drop_path_rate=0.1),
    neck=dict(type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=4, upsample=0),
)
