# RISurConv of the size of risurconv_furniture14.py, trained on nine classes of furniture in twelve epochs.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture14_open.py", "../_base_/schedule_adamw.py"]

model = dict(
    type="PointClassifier",
    label_smoothing=0.1,
    network=dict(
        type="RISurConvClassifier", num_classes=9, num_points=256, neighbors=(16, 16, 32, 32), encoder_layers=0
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=2, end=12, T_max=10, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=12, val_interval=12)
