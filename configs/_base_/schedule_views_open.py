# As schedule_views.py, in four epochs.
_base_ = ["schedule_views.py"]

param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=4, T_max=3, eta_min=2e-5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=4, val_interval=4)
