# A small ConViT on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="ConViT",
        dim=72,
        depths=(3, 1),
        heads=9,
        patch_size=8,
        img_size=64,
        num_classes=14,
    ),
)
