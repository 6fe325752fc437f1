# A small DiNAT on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="NAT",
        dims=(32, 64, 128, 192),
        depths=(2, 2, 2, 1),
        heads=(1, 2, 4, 6),
        kernel_size=3,
        dilations=((1, 5), (1, 2), (1,), (1,)),  # the largest that fit maps of 16, 8 and 4 pixels
        mlp_ratio=2.0,
        num_classes=14,
    ),
)
