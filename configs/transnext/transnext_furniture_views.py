# A small TransNeXt on the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="TransNeXt",
        dims=(24, 48, 96, 168),
        heads=(1, 2, 4, 7),
        depths=(1, 1, 2, 1),
        num_classes=14,
    ),
)
