# MobileNetV2 on ImageNet-1k, as in Coordinate Attention's comparison of plug-ins: 200 epochs with a cosine, random
# crops, no label smoothing, mixup or random augmentation. Published top-1 there: mobilenet_v2 72.3, with SE 73.5, with
# CBAM 73.6, mobilenet_v2_ca 74.3. Learning rate, weight decay and batch size are ours.
#   python tools/train.py configs/mobilenet_v2/mobilenet_v2_imagenet.py --cfg-options model.backbone.plugins=SE
# Trains mobilenet_v2 unless told otherwise: --cfg-options name=mobilenet_v2_ca
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:mobilenet_v2}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
)
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(batch_size=64, dataset=dict(transforms=[*transforms[:2], transforms[3]]))  # crop and flip alone
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=4e-5))
param_scheduler = [dict(type="CosineAnnealingLR", begin=0, end=200, T_max=200, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=10)
auto_scale_lr = dict(base_batch_size=256)
del variant
