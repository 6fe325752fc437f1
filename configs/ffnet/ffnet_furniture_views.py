# A small FFNet on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="FFNet",
        dims=(32, 64, 128, 256),
        depths=(1, 1, 2, 1),
        mlp_kernel_sizes=3,
        stem_dim=32,
        num_classes=14,
    ),
)
