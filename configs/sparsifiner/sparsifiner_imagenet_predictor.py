# The first of two phases of Sparsifiner on ImageNet-1k: five epochs in which the predictors alone learn the attention
# of DeiT, whose weights the network begins with; 8 GPUs with 168 images each. The second is sparsifiner_imagenet.py.
# Trains sparsifiner_small unless told otherwise:
#   python tools/train.py configs/sparsifiner/sparsifiner_imagenet_predictor.py --cfg-options name=sparsifiner_base \
#       pretrained=https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth
_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:sparsifiner_small}}"
pretrained = "{{$PRETRAINED:https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth}}"
work_dir = f"work_dirs/{name}_imagenet_predictor"

model = dict(
    type="SparsifinerDistiller",
    phase="predictor",
    backbone=dict(
        type="NamedBackbone",
        name=name,
        num_classes=1000,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
train_dataloader = dict(batch_size=168)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=3e-4, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=3, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=3, end=5, T_max=2, eta_min=2e-4, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=5, val_interval=5)
auto_scale_lr = dict(base_batch_size=1344)
