# A small ResNet with ELA on the output of every block, on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="ResNet",
        dims=(32, 64, 128, 256),
        depths=(2, 2, 2, 2),
        bottleneck=False,
        plugins=dict(type="ELA", variant="B"),
        num_classes=14,
    ),
)
