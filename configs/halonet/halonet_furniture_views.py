# A small HaloNet on the built-in pictures of furniture, with attention in the last two stages: minutes on a CPU.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="HaloNet",
        dims=(64, 96, 128, 192),
        depths=(1, 1, 2, 1),
        ratio=0.5,
        attends=((), (), (0, 1), (0,)),
        block_size=4,
        halo_size=1,
        stem_dims=(32,),
        stem_kernel=3,
        num_classes=14,
    ),
)
