# A small plain vision transformer, trained on nine classes of furniture: for open sets.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views_open.py", "../_base_/schedule_views_short.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(type="ViT", dim=64, depth=4, heads=4, patch_size=8, img_size=64, num_classes=9),
)
