# HyperZZW (Terminator) on CIFAR-10 from scratch, after the authors' configuration; the best accuracy in their log is
# 95.3. They test with the statistics of each batch: --cfg-options model.backbone.batch_statistics=True.
_base_ = ["../_base_/default_runtime.py", "../_base_/cifar10.py"]

work_dir = "work_dirs/hyperzzw_cifar10"

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name="hyperzzw_cifar10", num_classes=10, slow_loss=1.0, weight_norm=5e-5),
    label_smoothing=0.1,
)
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        transforms=[
            dict(type="RandomCrop", size=32, padding=4, mode="symmetric"),
            dict(type="RandomFlip"),
            dict(type="PackImage", mean=(125.31, 122.95, 113.87), std=(62.99, 62.09, 66.70)),
        ]
    ),
)
optim_wrapper = dict(optimizer=dict(type="Kar3", lr=1.215e-3, betas=(0.5, 0.95)))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=8, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=8, end=100, T_max=92, eta_min=0.0, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
auto_scale_lr = dict(base_batch_size=64)
