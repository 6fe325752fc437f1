# HyperZZW (Terminator) on CIFAR-100 from scratch, after the authors' configuration; the best accuracy in their log is
# 75.7. They test with the statistics of each batch: --cfg-options model.backbone.batch_statistics=True.
_base_ = "hyperzzw_cifar10.py"

work_dir = "work_dirs/hyperzzw_cifar100"

model = dict(backbone=dict(name="hyperzzw_cifar100", num_classes=100, weight_norm=4e-5))
# mean and standard deviation of the training pictures
pack = dict(type="PackImage", mean=(129.30, 124.07, 112.43), std=(68.17, 65.39, 70.42))
cifar100 = dict(type="CIFAR100", root="data/cifar-100-binary")
crops = _base_.train_dataloader.dataset.transforms[:-1]
train_dataloader = dict(dataset=dict(**cifar100, transforms=[*crops, pack]))
val_dataloader = test_dataloader = dict(dataset=dict(**cifar100, transforms=[pack]))
optim_wrapper = dict(optimizer=dict(lr=1.20925e-3, betas=(0.75, 0.99)))
