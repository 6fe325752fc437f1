# L2ViT of ImageNet-22k fine-tuned on ImageNet-1k at 384 pixels, as the authors: 30 epochs, 5 of them warm-up, at a
# small learning rate. Published top-1: l2vit_base_384 87.0. Training begins from the authors' weights (`load_from`),
# trained at 224 pixels with windows of 7; no weight has the size of either. Their last layer, for the classes of
# ImageNet-22k, is left out.
#   python tools/train.py configs/l2vit/l2vit_img384_imagenet.py
import importlib

_base_ = "l2vit_imagenet.py"

name = "{{$BACKBONE:l2vit_base_384}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(backbone=dict(name=name, drop_path_rate=variant.drop_path))
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(dataset=dict(transforms=transforms))
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=30, T_max=25, eta_min=4e-7, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
load_from = "L2ViT-Base-22k-pretrain-checkpoint-best.pth"
del variant
