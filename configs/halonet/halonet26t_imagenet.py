# HaloNet-26-T on ImageNet-1k at 256 pixels after recipe A1 of "ResNet strikes back" (arXiv 2110.00476), a variant of
# which made timm's weights: 8 GPUs with 256 images each, top-1 79.13.
_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="Backbone", name="halonet26t", num_classes=1000, drop_path_rate=0.05),
    loss="bce",
    target_threshold=0.2,  # all classes of a mixed image are targets
    mixup=0.2,
    cutmix=1.0,
)
train_dataloader = dict(
    batch_size=256,
    sampler=dict(type="RepeatedAugmentSampler", repeats=3),
    dataset=dict(
        transforms=[
            dict(type="RandomResizedCrop", size=256, interpolation="bicubic"),
            dict(type="RandomFlip"),
            dict(type="RandAugment", magnitude=7, num=2, magnitude_std=0.5, increasing=True),
            dict(type="PackImage"),
        ]
    ),
)
centre = [
    dict(type="Resize", size=269, interpolation="bicubic"),  # the crop is 0.95 of it
    dict(type="CenterCrop", size=256),
    dict(type="PackImage"),
]
val_dataloader = dict(dataset=dict(transforms=centre))
test_dataloader = dict(dataset=dict(transforms=centre))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="LAMB", lr=5e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=600, T_max=595, eta_min=1e-6, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=600, val_interval=10)
auto_scale_lr = dict(base_batch_size=2048)
