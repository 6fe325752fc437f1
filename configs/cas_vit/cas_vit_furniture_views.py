# A small CAS-ViT on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="CASViT",
        dims=(32, 48, 96, 160),
        depths=(1, 1, 2, 1),
        distilled=False,
        num_classes=14,
    ),
)
