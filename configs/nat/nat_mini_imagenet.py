# NAT-Mini on ImageNet-1k, as the authors: 8 GPUs with 128 images each, mixed precision (tools/train.py --amp),
# published top-1 81.8.
_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="Backbone", name="nat_mini", num_classes=1000, drop_path_rate=0.2),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=300, T_max=280, eta_min=5e-6, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=10)  # the last ten at the smallest learning rate
auto_scale_lr = dict(base_batch_size=1024)
