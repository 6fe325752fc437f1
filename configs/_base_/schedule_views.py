# Minutes on a CPU: AdamW with a warm-up of one epoch and a cosine after it; weights averaged over fifty iterations.
optim_wrapper = dict(
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=None),  # no weight decay of norms, biases, and what the network exempts
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=20, T_max=19, eta_min=2e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=10)
custom_hooks = [dict(type="EMAHook", ema_type="MomentumAnnealingEMA", momentum=0.02, gamma=10, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=64)
