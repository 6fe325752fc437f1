# TransNeXt on ImageNet-1k, as the authors: 8 GPUs with 128 images each. Published top-1: transnext_micro 82.5,
# transnext_tiny 84.0, transnext_small 84.7, transnext_base 84.8, and transnext_micro_aaaa (aggregated attention in
# all stages, at 256 pixels) 82.6.
# Trains transnext_micro unless told otherwise:
#   python tools/train.py configs/transnext/transnext_imagenet.py --cfg-options name=transnext_tiny
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:transnext_micro}}"
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
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(base_batch_size=1024)
del variant
