# A small SpaRTAN on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="SpaRTAN",
        dims=(32, 64, 128, 192),
        depths=(1, 1, 2, 1),
        layer_scale=1.0,  # 1e-5 as published is for long trainings
        num_classes=14,
    ),
)
