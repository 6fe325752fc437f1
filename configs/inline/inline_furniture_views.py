# A small InLine-PVT on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="InLinePVT",
        dims=(32, 64, 96, 192),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 3, 6),
        mlp_ratio=4.0,
        img_size=64,
        num_classes=14,
    ),
)
