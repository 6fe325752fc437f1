# VOLO on ImageNet-1k, as the authors: 8 GPUs with 128 images each. Published top-1: volo_d1_224 84.2, volo_d2_224 85.2,
# volo_d3_224 85.4, volo_d4_224 85.7, volo_d5_224 86.1; the recipe was published up to volo_d3_224.
# The authors' labels of tokens, of a larger network, are taken from batches that hold "token_labels"; ImageFolder has
# none, and each token learns the label of its image.
# Trains volo_d1_224 unless told otherwise:
#   python tools/train.py configs/volo/volo_imagenet.py --cfg-options name=volo_d2_224
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:volo_d1_224}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path, mix_tokens=1.0),
    label_smoothing=0.1,
    auxiliary_weight=0.5,
)
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(dataset=dict(transforms=transforms))
lr = 1.6e-3 if "_d1_" in name else 1e-3
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=lr, weight_decay=0.05),
)
param_scheduler = [  # the last ten epochs stay at the lowest learning rate
    dict(type="LinearLR", start_factor=1e-6 / lr, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=10)
auto_scale_lr = dict(base_batch_size=1024)
del variant
