# A small OverLoCK on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="OverLoCK",
        dims=(16, 32, 64, 96),
        depths=(1, 1, 1, 1),
        focus_depths=(1, 1),
        kernel_sizes=(9, 7, 5, 5),
        heads=(2, 3),
        features=256,
        num_classes=14,
    ),
)
