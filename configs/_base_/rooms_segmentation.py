# What small segmentors of the built-in rooms share, so that they can be compared: the images and the schedule. Each
# trains in minutes on a CPU.
_base_ = ["furnished_rooms_maps.py", "segmentation_runtime.py"]

train_cfg = dict(type="IterBasedTrainLoop", max_iters=1200, val_interval=600)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=1200, T_max=1200, eta_min=1e-5),
]
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="attlas.LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
default_hooks = dict(checkpoint=dict(interval=600, max_keep_ckpts=1))
