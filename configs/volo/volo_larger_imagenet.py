# VOLO of 224 pixels fine-tuned at 384 or more, as the authors: 8 GPUs with 64 images each for volo_d1_384, with 48 for
# volo_d2_384 and 30 for volo_d3_448. Published top-1: volo_d1_384 85.2, volo_d2_384 86.0, volo_d3_448 86.3,
# volo_d4_448 86.8, volo_d5_448 87.0, volo_d5_512 87.1. Training begins from the authors' weights (`load_from`), whose
# table of positions is resized.
# Trains volo_d1_384 unless told otherwise:
#   python tools/train.py configs/volo/volo_larger_imagenet.py --cfg-options name=volo_d2_384
import importlib

_base_ = "volo_imagenet.py"

name = "{{$BACKBONE:volo_d1_384}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(backbone=dict(name=name, drop_path_rate=variant.drop_path))
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(batch_size=dict(d1=64, d2=48).get(name[5:7], 30), dataset=dict(transforms=transforms))
optim_wrapper = dict(optimizer=dict(lr=8e-6, weight_decay=1e-8))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6 / 8e-6, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=30, T_max=25, eta_min=4e-6, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30, val_interval=1)
auto_scale_lr = dict(base_batch_size=8 * train_dataloader["batch_size"])
load_from = dict(
    d1="d1_224_84.2.pth.tar",
    d2="d2_224_85.2.pth.tar",
    d3="d3_224_85.4.pth.tar",
    d4="d4_224_85.7.pth.tar",
    d5="d5_224_86.10.pth.tar",
)[name[5:7]]
del variant
