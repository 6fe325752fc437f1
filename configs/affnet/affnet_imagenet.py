# AFFNet on ImageNet-1k. Published top-1: affnet_et 73.0, affnet_t 77.0, affnet 79.8; nothing for affnet_base and
# affnet_large. The authors' settings could not be read. This is the recipe of MobileViT (arXiv 2110.02178), whose
# library they use: 1024 images a step, no augmentation but crops and flips. It takes batches of several sizes, which
# this config does not.
# Trains affnet_et unless told otherwise:
#   python tools/train.py configs/affnet/affnet_imagenet.py --cfg-options name=affnet_t
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:affnet_et}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path, dropout=0.1),
    label_smoothing=0.1,
)
size, pack = variant.size, dict(type="PackImage", mean=variant.mean, std=variant.std)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomResizedCrop", size=size, interpolation="bicubic"),
            dict(type="RandomFlip"),
            pack,
        ]
    )
)
views = [
    dict(type="Resize", size=int(size / variant.crop), interpolation="bicubic"),
    dict(type="CenterCrop", size=size),
    pack,
]
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=3000),
    dict(type="CosineAnnealingLR", begin=0, end=300, T_max=300, eta_min=2e-4, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=5e-4, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=1024)
del variant
