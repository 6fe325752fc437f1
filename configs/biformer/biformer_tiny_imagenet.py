# BiFormer-T on ImageNet-1k after the authors' recipe, 1024 images a step: published top-1 81.4.
_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

model = dict(
    type="ImageClassifier",
    # drop path: published for S, taken for all
    backbone=dict(type="Backbone", name="biformer_tiny", num_classes=1000, drop_path_rate=0.15),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),  # 5e-4 for 512 images
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=300, T_max=295, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
auto_scale_lr = dict(base_batch_size=1024)
