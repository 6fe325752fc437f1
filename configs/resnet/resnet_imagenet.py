# ResNet on ImageNet-1k after the paper's recipe, in the 90 epochs of torchvision's: 256 images a step. Published top-1
# there: resnet18 69.8, resnet34 73.3, resnet50 76.1, resnet101 77.4, resnet152 78.3. A plug-in goes on every block by
#   python tools/train.py configs/resnet/resnet_imagenet.py --cfg-options model.backbone.plugins=ELA
# Trains resnet50 unless told otherwise: --cfg-options name=resnet18
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:resnet50}}"
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
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type="MultiStepLR", milestones=[30, 60], gamma=0.1)]
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=10)
auto_scale_lr = dict(base_batch_size=256)
del variant
