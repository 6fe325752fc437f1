# A small VOLO on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    auxiliary_weight=0.5,
    backbone=dict(
        type="VOLO",
        dims=(48, 96, 96),
        depths=(2, 2, 1),
        heads=(3, 6, 6),
        stem_dim=16,
        img_size=64,
        num_classes=14,
    ),
)
