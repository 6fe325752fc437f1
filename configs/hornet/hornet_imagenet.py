# HorNet on ImageNet-1k, as the authors: 4096 images a step. Published top-1 with 7x7 convolutions: hornet_tiny_7x7
# 82.8, hornet_small_7x7 83.8, hornet_base_7x7 84.2; with global filters: hornet_tiny_gf 83.0, hornet_small_gf 84.0,
# hornet_base_gf 84.3. The large ones were trained on ImageNet-22k.
# Trains hornet_tiny_7x7 unless told otherwise:
#   python tools/train.py configs/hornet/hornet_imagenet.py --cfg-options name=hornet_tiny_gf
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:hornet_tiny_7x7}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(dataset=dict(transforms=transforms))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0 if "_gf" in name else 100.0 if "tiny" in name else 5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=1e-6, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1e-4, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=4096)
del variant
