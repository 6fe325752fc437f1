# A small ResNet, trained on nine classes of furniture: for open sets.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views_open.py", "../_base_/schedule_views_short.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(type="ResNet", dims=(16, 32, 64, 128), depths=(2, 2, 2, 2), bottleneck=False, num_classes=9),
)
