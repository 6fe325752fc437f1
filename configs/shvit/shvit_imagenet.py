# SHViT on ImageNet-1k after the authors' recipe: 8 GPUs with 256 images each. Published top-1: shvit_s1 72.8,
# shvit_s2 75.2, shvit_s3 77.4, shvit_s4 (at 256 pixels) 79.4.
# Trains shvit_s1 unless told otherwise:
#   python tools/train.py configs/shvit/shvit_imagenet.py --cfg-options name=shvit_s2
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:shvit_s1}}"
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
    batch_size=256,
    sampler=dict(_delete_=True, type="RepeatedAugmentSampler", repeats=3),
    dataset=dict(transforms=transforms),
)
weight_decay = dict(shvit_s1=0.025, shvit_s2=0.032, shvit_s3=0.035, shvit_s4=0.03)[name]
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=weight_decay),  # 1e-3 for 512 images, as in networks of its kind
)
custom_hooks = [
    dict(type="AdaptiveClipHook", clip_factor=0.02),
    dict(type="EMAHook", momentum=4e-5, update_buffers=True),
]
auto_scale_lr = dict(base_batch_size=2048)
del variant
