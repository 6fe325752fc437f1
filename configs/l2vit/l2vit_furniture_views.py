# A small L2ViT on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="L2ViT",
        dims=(32, 64, 128, 192),
        depths=(2, 2, 2, 2),
        heads=(1, 2, 4, 6),
        window=4,
        num_classes=14,
    ),
)
