# A small SHViT, trained on nine classes of furniture: for open sets.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views_open.py", "../_base_/schedule_views_short.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(type="SHViT", dims=(64, 96, 128), depths=(1, 2, 2), partial_dims=(None, 20, 28), num_classes=9),
)
