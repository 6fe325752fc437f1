# A small DependencyViT on the built-in pictures of furniture: minutes on a CPU.
# dependencyvit_lite_furniture_views.py is the same with pruning, ../dhvt/vit_furniture_views.py a plain vision
# transformer with as many blocks, channels and heads.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="DependencyViT",
        dim=64,
        depth=6,
        heads=4,
        patch_size=8,
        img_size=64,
        layer_scale=None,  # the 1e-6 of the large networks delays so short a training
        num_classes=14,
    ),
)
