# 160,000 iterations of 16 images, AdamW, for UperNet: as most papers have it.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160_000, val_interval=16_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160_000),
]
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="attlas.LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=6e-5, weight_decay=0.01),
)
auto_scale_lr = dict(base_batch_size=16)
