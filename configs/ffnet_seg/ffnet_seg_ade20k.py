# FFNet-seg on ADE20K. Published mIoU, of one scale / several: 50.1 / 51.2.
# The authors exempt norms from weight decay by a name that their norms do not have, so all weights decay.
_base_ = ["../_base_/ffnet_seg.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:ffnet_seg}}"
work_dir = f"work_dirs/{name}_ade20k"
model = dict(
    backbone=dict(drop_path_rate=0.3),
    decode_head=dict(depth=3, mlp_ratio=4.0, drop_path_rate=0.1),
)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
    optimizer=dict(lr=6e-5, weight_decay=0.05),
)
