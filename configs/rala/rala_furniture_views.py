# A small RAVLT on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="RAVLT",
        dims=(32, 64, 96, 192),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 3, 6),
        features=256,
        num_classes=14,
    ),
)
