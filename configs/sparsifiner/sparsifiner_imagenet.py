# The second of two phases of Sparsifiner on ImageNet-1k: 45 epochs in which all but the predictors learns from labels
# and from DeiT, after the paper; 8 GPUs with 168 images each. It begins with the file of the first,
# sparsifiner_imagenet_predictor.py. The paper's claim is at most 0.4 % less accuracy than that of DeiT.
# Trains sparsifiner_small unless told otherwise; sparsifiner_tiny and sparsifiner_base have teachers of their own:
#   python tools/train.py configs/sparsifiner/sparsifiner_imagenet.py --cfg-options name=sparsifiner_base \
#       pretrained=https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth
_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:sparsifiner_small}}"
# of the teacher
pretrained = "{{$PRETRAINED:https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth}}"
work_dir = f"work_dirs/{name}_imagenet"
load_from = f"work_dirs/{name}_imagenet_predictor/epoch_5.pth"

model = dict(
    type="SparsifinerDistiller",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=0.0),
    teacher=dict(
        type="NamedBackbone",
        name=name.replace("sparsifiner", "deit"),
        num_classes=1000,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
train_dataloader = dict(batch_size=168)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=8e-5, weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=3, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=3, end=45, T_max=42, eta_min=2e-6, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=45, val_interval=5)
auto_scale_lr = dict(base_batch_size=1344)
