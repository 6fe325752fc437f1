# CrossViT on ImageNet-1k after the paper's recipe: 4096 images a step. Published top-1: crossvit_tiny 73.4,
# crossvit_small 81.0, crossvit_base 82.2, crossvit_9 73.9, crossvit_15 81.5, crossvit_18 82.5, crossvit_9_dagger 77.1,
# crossvit_15_dagger 82.3, crossvit_18_dagger 82.8. The weights of crossvit_15_dagger_384 and crossvit_18_dagger_384
# (83.8 and 84.2, as timm measured them) were fine-tuned for 30 epochs from those of the smaller images.
# The authors mean to exempt position tables and class tokens from weight decay, by names that their parameters do not
# have, so theirs decay; here these do not.
# Trains crossvit_tiny unless told otherwise:
#   python tools/train.py configs/crossvit/crossvit_imagenet.py --cfg-options name=crossvit_15
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:crossvit_tiny}}"
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
if name.startswith("crossvit_18"):
    train_dataloader["sampler"] = dict(_delete_=True, type="RepeatedAugmentSampler", repeats=3)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=30, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=30, end=300, T_max=270, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
auto_scale_lr = dict(base_batch_size=4096)
del variant
