# FFNet of 256 pixels fine-tuned at 384, 30 epochs at a small learning rate. Published top-1: ffnet_3_img384 84.5,
# ffnet_4_img384 85.3. Training begins from weights of ffnet_imagenet.py or the authors' (`load_from`); those of ffnet_4
# at 256 pixels are not released.
# Trains ffnet_3_img384 unless told otherwise:
#   python tools/train.py configs/ffnet/ffnet_img384_imagenet.py --cfg-options name=ffnet_4_img384
import importlib

_base_ = "ffnet_imagenet.py"

name = "{{$BACKBONE:ffnet_3_img384}}"
importlib.import_module("attlas.data").one_of("name", name, ("ffnet_3_img384", "ffnet_4_img384"))
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(backbone=dict(name=name, drop_path_rate=variant.drop_path))
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(dataset=dict(transforms=transforms))
optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = [dict(type="ConstantLR", factor=1.0, begin=0, end=30)]  # a cosine to 1e-5 would rise
train_cfg = dict(max_epochs=30, val_interval=5)
load_from = name.replace("_img384", ".pth.tar")
del variant
