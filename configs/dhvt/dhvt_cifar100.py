# DHVT on CIFAR-100 from scratch, as the authors: DeiT's recipe, but that the crop is of the padded picture. Published
# top-1, the best of five runs: dhvt_tiny_cifar_patch4 80.93, dhvt_small_cifar_patch4 82.91, dhvt_tiny_cifar_patch2
# 83.54, dhvt_small_cifar_patch2 85.68. The learning rate is 1e-3 for 512 images, in proportion.
# Trains dhvt_tiny_cifar_patch4 unless told otherwise:
#   python tools/train.py configs/dhvt/dhvt_cifar100.py --cfg-options name=dhvt_tiny_cifar_patch2
_base_ = ["../_base_/default_runtime.py", "../_base_/cifar100.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:dhvt_tiny_cifar_patch4}}"
work_dir = f"work_dirs/{name}_cifar100"
batch_size = 256 if "small" in name else 512

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=100, drop_path_rate=0.1),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
pack = dict(type="PackImage")  # by the mean and the standard deviation of ImageNet, as the authors
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(_delete_=True, type="RepeatedAugmentSampler", repeats=3),
    dataset=dict(
        transforms=[
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomFlip"),
            dict(type="RandAugment", magnitude=9, num=2, magnitude_std=0.5, increasing=True),
            pack,
            dict(type="RandomErasing", probability=0.25, mode="pixel"),
        ]
    ),
)
val_dataloader = test_dataloader = dict(dataset=dict(transforms=[pack]))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3 * batch_size / 512, weight_decay=0.05),
)
sync_bn = "torch"  # batch norms of several GPUs take their statistics together
auto_scale_lr = dict(base_batch_size=batch_size)
