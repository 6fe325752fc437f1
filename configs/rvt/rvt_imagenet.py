# RVT with token-aware pooling and attention diversification on ImageNet-1k, after the authors' recipe for the base
# model: 32 GPUs with 64 images each. Published top-1 of tap_rvt_base_plus: 83.1; mean corruption error on ImageNet-C
# 44.7. Their augmentation of patches by adversarial noise, with a second backward pass, is left out. What the recipe
# leaves open is DeiT's.
# Trains tap_rvt_base_plus unless told otherwise:
#   python tools/train.py configs/rvt/rvt_imagenet.py --cfg-options name=tap_rvt_tiny
# Without either (RVT): --cfg-options model.backbone.num_scales=None model.diversification=0
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:tap_rvt_base_plus}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    diversification=1.0,
)
train_dataloader = dict(batch_size=64, sampler=dict(_delete_=True, type="RepeatedAugmentSampler", repeats=3))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),  # 5e-4 for 512 images
)
auto_scale_lr = dict(base_batch_size=2048)
del variant
