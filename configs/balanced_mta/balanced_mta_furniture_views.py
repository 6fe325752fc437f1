# A small network with balanced multi-task attention on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="BalancedMTA",
        dims=(32, 64, 128, 192),
        depths=(1, 1, 1, 1),
        strides=(2, 4, 8, 8),  # of pictures of 64 pixels: no map is smaller than the squares of DropBlock
        drop_block=(0.0, 0.0, 0.05, 0.05),
        dropout=0.2,
        num_classes=14,
    ),
)
