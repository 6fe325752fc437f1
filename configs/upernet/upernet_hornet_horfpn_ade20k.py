# HorNet in UperNet with the head of HorFPN on ADE20K, as the authors' config, whose figure is in the paper alone. With
# a global filter: --cfg-options model.decode_head.gnconv.filter_size=32,17 optim_wrapper.clip_grad.max_norm=0.1.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:hornet_small_7x7}}"
work_dir = f"work_dirs/upernet_{name}_horfpn_ade20k"
model = dict(
    backbone=dict(drop_path_rate=0.3),
    decode_head=dict(type="attlas.GNUPerHead", gnconv=dict(kernel_size=7, proj_out=True)),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay=0.9, coarse=True),
    optimizer=dict(lr=1e-4, weight_decay=0.05),
)
