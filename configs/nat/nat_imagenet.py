# NAT and DiNAT on ImageNet-1k, as the authors: 8 GPUs with 128 images each, mixed precision (tools/train.py --amp).
# Published top-1: nat_mini 81.8, nat_tiny 83.2, nat_small 83.7, nat_base 84.3, nat_iso_small 80.0; dinat_mini 81.8,
# dinat_tiny 82.7, dinat_small 83.8, dinat_base 84.4, dinat_iso_base 82.1; dinat_s_tiny 81.8, dinat_s_small 83.5,
# dinat_s_base 83.8. The large ones begin from ImageNet-22k: dinat_large_imagenet.py.
# Trains nat_mini unless told otherwise:
#   python tools/train.py configs/nat/nat_imagenet.py --cfg-options name=dinat_mini
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:nat_mini}}"
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
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=5e-6, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=10)  # the last ten at the smallest learning rate
auto_scale_lr = dict(base_batch_size=1024)
del variant
