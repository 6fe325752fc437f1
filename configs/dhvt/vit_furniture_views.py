# What dhvt_furniture_views.py is to be compared with: a plain vision transformer, with a class token and a table of
# positions. A wider MLP gives it as many parameters (367 to 368 thousand). A step takes four fifths of the time.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="Isotropic",
        dim=64,
        depth=6,
        mixers=dict(type="Attention", heads=4),
        patch_size=8,
        img_size=64,
        mlp_ratio=5.0,
        num_classes=14,
    ),
)
