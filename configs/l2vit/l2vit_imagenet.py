# L2ViT on ImageNet-1k, as the authors: 4096 images a step, without mixed precision. Published top-1: l2vit_tiny 83.1,
# l2vit_small 84.1, l2vit_base 84.4. The drop path of l2vit_base is theirs, that of the two smaller ones ours.
# Their weights of l2vit_base_384 (87.0; l2vit_base 86.0) come from ImageNet-22k: l2vit_img384_imagenet.py.
# Trains l2vit_tiny unless told otherwise:
#   python tools/train.py configs/l2vit/l2vit_imagenet.py --cfg-options name=l2vit_base
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:l2vit_tiny}}"
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
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=1e-6, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1e-4, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=4096)
del variant
