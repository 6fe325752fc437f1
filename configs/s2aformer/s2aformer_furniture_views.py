# A small S2AFormer on the built-in pictures of furniture: minutes on a CPU. Its maps have 16 pixels along a side and
# less, hence the small squares.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="S2AFormer",
        dims=(32, 64, 96, 160),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 3, 5),
        sr_ratios=(4, 2, 1, 1),
        num_classes=14,
    ),
)
