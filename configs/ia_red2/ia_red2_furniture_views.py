# A small vision transformer on the built-in pictures of furniture, minutes on a CPU, which keeps all tokens.
# ia_red2_turn_furniture_views.py teaches it to drop some.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="IARED2",
        dim=64,
        groups=(2, 2, 2),
        heads=4,
        interpreter_heads=4,
        patch_size=8,
        img_size=64,
        threshold=0.0,
        num_classes=14,
    ),
)
