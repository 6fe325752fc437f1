# 300 epochs on ImageNet: five of warm-up, then a cosine to 1e-5, as most recipes since DeiT have it.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=300, T_max=295, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
