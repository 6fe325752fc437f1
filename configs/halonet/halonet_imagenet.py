# HaloNet on ImageNet-1k after recipe A1 of "ResNet strikes back" (arXiv 2110.00476), a variant of which made timm's
# weights: 8 GPUs with 256 images each. Top-1 of these weights: halonet26t 79.13, sehalonet33ts 80.99, halonet50ts
# 81.70, eca_halonext26ts 79.50, haloregnetz_b 81.04. Published for the networks of the paper, whose recipe was not at
# hand: halonet_h0 77.9, halonet_h1 79.9, halonet_h2 80.4, halonet_h3 81.9, halonet_h4 83.3, halonet_h5 84.0,
# halonet_h6 84.4, halonet_h7 84.9.
# Trains halonet26t unless told otherwise:
#   python tools/train.py configs/halonet/halonet_imagenet.py --cfg-options name=halonet50ts
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:halonet26t}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=0.05),
    loss="bce",
    target_threshold=0.2,  # all classes of a mixed image are targets
    mixup=0.2,
    cutmix=1.0,
)
size = variant.size
train_dataloader = dict(
    batch_size=256,
    sampler=dict(type="RepeatedAugmentSampler", repeats=3),
    dataset=dict(
        transforms=[
            dict(type="RandomResizedCrop", size=size, interpolation="bicubic"),
            dict(type="RandomFlip"),
            dict(type="RandAugment", magnitude=7, num=2, magnitude_std=0.5, increasing=True),
            dict(type="PackImage", mean=variant.mean, std=variant.std),
        ]
    ),
)
views = [
    dict(type="Resize", size=int(size / variant.crop), interpolation="bicubic"),
    dict(type="CenterCrop", size=size),
    dict(type="PackImage", mean=variant.mean, std=variant.std),
]
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
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
del variant
