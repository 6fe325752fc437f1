# A classifier on ImageNet-1k that begins with a student of PH-Reg, or with the plain transformer and new registers, by
# DeiT's recipe; the authors have none. 8 GPUs with 128 images each:
#   PRETRAINED=distilled.pth python tools/train.py configs/ph_reg/ph_reg_imagenet.py
# Trains ph_reg_clip_base_patch16 unless told otherwise: --cfg-options name=ph_reg_dinov2_base
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:ph_reg_clip_base_patch16}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="NamedBackbone", name=name, num_classes=1000, pretrained=pretrained, drop_path_rate=variant.drop_path
    ),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
size, pack = variant.size, dict(type="PackImage", mean=variant.mean, std=variant.std)
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, transforms[3] = size, pack
views[0].size, views[1].size, views[2] = int(size / variant.crop), size, pack
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(
    sampler=dict(_delete_=True, type="RepeatedAugmentSampler", repeats=3), dataset=dict(transforms=transforms)
)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),  # 5e-4 for 512 images
)
auto_scale_lr = dict(base_batch_size=1024)
del variant, pack
