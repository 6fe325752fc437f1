# SpaRTAN on ImageNet-1k at 256 pixels, as the authors: 4 GPUs with 512 images each, mixed precision (tools/train.py
# --amp). They skip steps whose loss is not a number, which is not done here. Published top-1: spartan_t 77.7.
# Trains spartan_t, the only variant whose settings are published:
#   python tools/train.py configs/spartan/spartan_imagenet.py
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:spartan_t}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    mixup=0.2,
    cutmix=1.0,
)
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
transforms[2].magnitude = 7
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(batch_size=512, dataset=dict(transforms=transforms))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    paramwise_cfg=dict(norm_decay=1.0, bias_decay=1.0, no_decay=[r"norm", r"mixer\.gamma"]),  # norms and γ, no more
    optimizer=dict(type="AdamW", lr=2.5e-3, weight_decay=0.03),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.04, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=1e-6, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
auto_scale_lr = dict(base_batch_size=2048)
del variant
