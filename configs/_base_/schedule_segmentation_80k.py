# 80,000 iterations of 16 images, AdamW, for Semantic FPN.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=80_000, val_interval=8_000)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=80_000)]
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="attlas.LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4),
)
auto_scale_lr = dict(base_batch_size=16)
