# TCPA on ImageNet-1k: prompts and the head learn, the transformer stays as it is, as timm's
# vit_base_patch16_224.augreg_in21k, which is given as PRETRAINED=FILE. The authors have other data (see tcpa_cub.py);
# their recipe is taken over, with ImageNet's usual crops and fewer epochs, which are ours, as the learning rate is.
# Trains tcpa_vfpt_base unless told otherwise:
#   PRETRAINED=FILE python tools/train.py configs/tcpa/tcpa_imagenet.py --cfg-options name=tcpa_vpt_base
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:tcpa_vfpt_base}}"
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
    mix_probability=0.5,
)
pack = dict(type="PackImage", mean=variant.mean, std=variant.std)
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
train_dataloader = dict(dataset=dict(transforms=[*transforms[:2], pack]))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=[*views[:2], pack]))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=0.1),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=2, end=10, T_max=8, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=2)
custom_hooks = [dict(type="PromptHook", random_epochs=1)]
auto_scale_lr = dict(base_batch_size=128)
del variant, transforms, views
