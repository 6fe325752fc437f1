# What small restorers of the built-in photographs share, so that they can be compared. Each trains in minutes on a CPU.
_base_ = ["./restoration_runtime.py"]

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-3, betas=(0.9, 0.99)))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=4000, T_max=3900, eta_min=1e-6),
]
train_cfg = dict(max_iters=4000, val_interval=1000)
custom_hooks = [dict(type="EMAHook", momentum=0.01)]
default_hooks = dict(checkpoint=dict(interval=1000))
test_evaluator = [dict(type="ImagePSNR", by_picture=True), dict(type="ImageSSIM", by_picture=True)]
