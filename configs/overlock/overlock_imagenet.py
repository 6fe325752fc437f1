# OverLoCK on ImageNet-1k, as the authors: 8 GPUs with 256 images each. Published top-1: overlock_xt 82.7, overlock_t
# 84.2, overlock_s 84.8, overlock_b 85.1. Mixed precision can end in NaN, they say: then train on in float32.
# Trains overlock_xt unless told otherwise:
#   python tools/train.py configs/overlock/overlock_imagenet.py --cfg-options name=overlock_t
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:overlock_xt}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    auxiliary_weight=0.4,
)
views = _base_.val_dataloader.dataset.transforms
views[0].size = int(variant.size / variant.crop)
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
custom_hooks = [dict(type="EMAHook", momentum=1e-4, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=2048)
del variant
