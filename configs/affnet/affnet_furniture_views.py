# A small AFFNet on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="AFFNet",
        dims=(48, 64, 96, 128),
        depths=(1, 1, 2, 2),
        mlp_ratio=2.0,
        expansion=2.0,
        stem_dims=(16, 32),
        num_classes=14,
    ),
)
