# A small MobileNetV2 with Coordinate Attention in its blocks, on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="MobileNetV2",
        dims=(16, 24, 32, 48, 64, 96, 160),
        depths=(1, 1, 2, 2, 2, 1, 1),
        strides=(2, 4, 4, 8, 8, 16, 16),  # of pictures of 64 pixels
        features=640,
        plugins="CoordinateAttention",
        num_classes=14,
    ),
)
