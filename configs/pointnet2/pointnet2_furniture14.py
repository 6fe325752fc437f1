# PointNet++ (single-scale grouping), at its published size and on points alone, with the recipe of RISurConv but for
# 30 epochs.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture14.py", "../_base_/schedule_adamw.py"]

model = dict(
    type="PointClassifier",
    label_smoothing=0.1,
    network=dict(type="PointNet2Classifier", num_classes=14),
)
