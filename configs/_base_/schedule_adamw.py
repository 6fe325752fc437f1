# AdamW with a warm-up of a sixth of the epochs and a cosine after it, both by iteration; weights averaged over some
# fifty iterations (fewer in the beginning), which is what validation, test and the saved state_dict see.
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=30, T_max=25, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=10)
custom_hooks = [dict(type="EMAHook", ema_type="MomentumAnnealingEMA", momentum=0.02, gamma=10, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=16)
