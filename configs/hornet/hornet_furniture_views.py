# A small HorNet on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="HorNet",
        dims=(24, 48, 96, 192),
        depths=(1, 1, 3, 1),
        filter_sizes=(None, None, (4, 3), (2, 2)),
        layer_scale=1.0,
        num_classes=14,
    ),
)
