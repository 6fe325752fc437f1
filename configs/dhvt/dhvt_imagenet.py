# DHVT on ImageNet-1k after DeiT's recipe, as the paper: 512 images a step. Published top-1: dhvt_tiny_imagenet_patch16
# 77.6 (in the paper 76.5), dhvt_small_imagenet_patch16 82.3. The variants for other data sets take its images at their
# sizes.
# Trains dhvt_tiny_imagenet_patch16 unless told otherwise:
#   python tools/train.py configs/dhvt/dhvt_imagenet.py --cfg-options name=dhvt_small_imagenet_patch16
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:dhvt_tiny_imagenet_patch16}}"
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
train_dataloader = dict(
    sampler=dict(_delete_=True, type="RepeatedAugmentSampler", repeats=3), dataset=dict(transforms=transforms)
)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=2e-3, begin=0, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=10, end=300, T_max=290, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
sync_bn = "torch"  # batch norms of several GPUs take their statistics together
auto_scale_lr = dict(base_batch_size=512)
del variant
