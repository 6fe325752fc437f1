# A small DHVT on the built-in pictures of furniture: minutes on a CPU. vit_furniture_views.py is a plain vision
# transformer with as many blocks, channels, heads and parameters, which learns the same pictures in as many epochs.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(type="DHVT", dim=64, depth=6, heads=4, patch_size=8, num_classes=14),
)
