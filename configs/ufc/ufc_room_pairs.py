# A small UFC on pairs of views of the built-in rooms: minutes on a CPU, from nothing.
_base_ = ["../_base_/default_runtime.py", "../_base_/room_pairs.py"]

model = dict(
    type="Matcher",
    size=(96, 128),
    backbone=dict(
        type="ResNet",
        dims=(24, 32, 48, 64),
        depths=(1, 1, 1, 1),
        bottleneck=False,
        strides=(2, 4, 8, 16),  # no pooling in the stem
        out_indices=(1, 2, 3),
    ),
    network=dict(type="UFC", dim=64, heads=4, depths=(1, 1, 1), refine_last=False),
)
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.01), clip_grad=dict(max_norm=1.0)
)
max_iters = 1000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=max_iters, T_max=max_iters, eta_min=1e-5),
]
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=max_iters)
)
log_processor = dict(by_epoch=False)
