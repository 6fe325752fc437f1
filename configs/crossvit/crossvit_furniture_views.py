# A small CrossViT on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="CrossViT",
        dims=(48, 96),
        depths=((1, 2), (1, 2)),
        heads=(2, 4),
        patch_size=(4, 8),
        img_size=(64, 56),
        mlp_ratio=3.0,
        num_classes=14,
    ),
)
