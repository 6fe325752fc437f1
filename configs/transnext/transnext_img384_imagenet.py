# TransNeXt of 224 pixels fine-tuned at 384, five epochs at a constant learning rate. Published top-1:
# transnext_small_img384 86.0, transnext_base_img384 86.2. Training begins from the authors' weights (`load_from`).
# Trains transnext_small_img384 unless told otherwise:
#   python tools/train.py configs/transnext/transnext_img384_imagenet.py --cfg-options name=transnext_base_img384
import importlib

_base_ = "transnext_imagenet.py"

name = "{{$BACKBONE:transnext_small_img384}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    backbone=dict(name=name, drop_path_rate=variant.drop_path),
    cutmix=0.0,
)
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(dataset=dict(transforms=transforms))
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [dict(type="ConstantLR", factor=1.0, begin=0, end=5)]
train_cfg = dict(max_epochs=5, val_interval=1)
load_from = name.replace("_img384", "_224_1k.pth")
del variant
