# CAS-ViT on ImageNet-1k after the authors' recipe: 8 GPUs with 128 images each, two of these for a step, one head.
# Published top-1: cas_vit_xs 78.3, cas_vit_s 80.9, cas_vit_m 82.8, cas_vit_t 83.9.
# Their sizes differ from batch to batch, in multiples of 32 pixels from 160 to 320; here all images have 224.
# Trains cas_vit_xs unless told otherwise:
#   python tools/train.py configs/cas_vit/cas_vit_imagenet.py --cfg-options name=cas_vit_s
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:cas_vit_xs}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, distilled=False, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
)
transforms = _base_.train_dataloader.dataset.transforms
train_dataloader = dict(dataset=dict(transforms=transforms[:-1]))  # without RandomErasing
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=6e-3, weight_decay=0.05),
    accumulative_counts=2,
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=1e-6, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
average = dict(ema_type="ExponentialMovingAverage", momentum=5e-4, interval=2)  # after each step
custom_hooks = [dict(type="EMAHook", **average, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=1024)  # of one pass; a step takes two
del average, variant
