# A small DuoFormer on the built-in pictures of furniture: minutes on a CPU. Its regions have 16 pixels, of three maps.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="DuoFormer",
        dim=64,
        depth=3,
        heads=4,
        pyramid=dict(type="ResNet", dims=(32, 64, 128), depths=(1, 1, 1), bottleneck=False),
        scales=3,
        img_size=64,
        num_classes=14,
    ),
)
