# AttNet on ImageNet-1k after the authors' recipe: attnet_t1, attnet_t2 (published top-1 84.4), attnet_t3, attnet_t4,
# and with less augmentation attnet_xxs, attnet_xs, attnet_s. They say the learning rate but not the batch, nor how
# slowly the weights are averaged: 4096 images and 1e-4 are ours.
# Trains attnet_t1 unless told otherwise:
#   python tools/train.py configs/attnet/attnet_imagenet.py --cfg-options name=attnet_t2
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:attnet_t1}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]
small = name in ("attnet_xxs", "attnet_xs", "attnet_s")

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
    mixup=0.05 if small else 0.8,
    cutmix=0.0 if small else 1.0,
)
transforms = _base_.train_dataloader.dataset.transforms
if small:
    transforms = [t for t in transforms if t.type not in ("RandAugment", "RandomErasing")]
train_dataloader = dict(dataset=dict(transforms=transforms))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=0.015 if name == "attnet_xxs" else 0.05),
)
custom_hooks = [
    dict(type="AdaptiveClipHook", clip_factor=0.01),
    dict(type="EMAHook", momentum=1e-4, update_buffers=True),
]
auto_scale_lr = dict(base_batch_size=4096)
del variant
