# As schedule_views.py, in twelve epochs.
_base_ = ["schedule_views.py"]

param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, begin=0, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=2, end=12, T_max=10, eta_min=2e-5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=12, val_interval=12)
