# DiNAT of ImageNet-22k fine-tuned on ImageNet-1k, as the authors: 8 GPUs with 64 images each, the learning rate
# falling in a line, no mixed images. Published top-1: dinat_large 86.6, dinat_large_384 87.4, dinat_large_384_11x11
# 87.5, dinat_s_large 86.5. Training begins from the authors' weights (`load_from`).
# Trains dinat_large unless told otherwise:
#   python tools/train.py configs/nat/dinat_large_imagenet.py --cfg-options name=dinat_s_large
import importlib

_base_ = "nat_imagenet.py"

name = "{{$BACKBONE:dinat_large}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    backbone=dict(name=name, drop_path_rate=variant.drop_path),
    mixup=0.0,
    cutmix=0.0,
)
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(batch_size=64, dataset=dict(transforms=transforms))
optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=1e-4))
param_scheduler = [dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=30, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30, val_interval=1)
auto_scale_lr = dict(base_batch_size=512)
load_from = dict(  # the last layer of these, for the classes of ImageNet-22k, is left out
    dinat_large="dinat_large_in22k_224.pth",
    dinat_large_384="dinat_large_in22k_224.pth",
    dinat_large_384_11x11="dinat_large_in22k_224_11x11.pth",
    dinat_s_large="dinat_s_large_in22k_224.pth",
)[name]
del variant
