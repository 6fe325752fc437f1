# Plain vision transformers on ImageNet-1k after DeiT's recipe: 8 GPUs with 128 images each. Published top-1: deit_tiny
# 72.2, deit_small 79.9, deit_base 81.8; deit_base_384, which goes on from deit_base for 30 epochs at 384 pixels, 83.1.
# DeiT III (deit3_small 81.4, deit3_base 83.8, deit3_large 84.9) had a longer recipe of its own, with LAMB and binary
# cross entropy. With the weights of DINOv2 or CLIP as pretrained=FILE, name=dinov2_base or name=clip_vit_base_patch16
# get a classifier here. Trains deit_tiny unless told otherwise:
#   python tools/train.py configs/vit/vit_imagenet.py --cfg-options name=deit_small
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:deit_tiny}}"
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
