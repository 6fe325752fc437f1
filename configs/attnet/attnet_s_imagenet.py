# AttNet-S on ImageNet-1k: the small networks train with little augmentation.
_base_ = "attnet_t1_imagenet.py"

model = dict(backbone=dict(name="attnet_s", drop_path_rate=0.0), mixup=0.05, cutmix=0.0)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomResizedCrop", size=224, interpolation="bicubic"),
            dict(type="RandomFlip"),
            dict(type="PackImage"),
        ]
    )
)
