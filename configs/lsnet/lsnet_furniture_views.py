# A small LSNet on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="LSNet",
        dims=(32, 64, 96, 128),
        depths=(1, 2, 3, 3),
        num_classes=14,
    ),
)
