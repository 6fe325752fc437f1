# FFNet-seg on Cityscapes, in crops and windows of 1024 x 1024, its head deeper and its blocks narrower than for ADE20K.
# Published mIoU, of one scale / several: 83.2 / 84.1. All weights decay, as for ADE20K.
_base_ = ["../_base_/ffnet_seg.py", "../_base_/cityscapes_160k.py"]

name = "{{$BACKBONE:ffnet_seg}}"
work_dir = f"work_dirs/{name}_cityscapes"
model = dict(
    backbone=dict(drop_path_rate=0.35),
    decode_head=dict(depth=5, mlp_ratio=1.0, drop_path_rate=0.0),
    test_cfg=dict(mode="slide", crop_size=(1024, 1024), stride=(768, 768)),
)
pipeline = _base_.train_dataloader.dataset.pipeline
pipeline[3].crop_size = (1024, 1024)
train_dataloader = dict(dataset=dict(pipeline=pipeline))
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
    optimizer=dict(lr=6e-5, weight_decay=0.02),
)
