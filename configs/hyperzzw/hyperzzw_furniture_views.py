# A small HyperZZW on patches of the built-in pictures of furniture: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views_short.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="Terminator",
        dims=(36, 72, 144),
        layers=2,
        earlier=((), (), (0,)),
        dropout=0.05,
        img_size=64,
        patch_size=8,
        hidden=32,
        local_hidden=16,
        channel_hidden=16,
        interact_hidden=(16, 32),
        num_classes=14,
    ),
)
