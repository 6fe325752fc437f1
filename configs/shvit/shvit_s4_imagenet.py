# SHViT-S4 on ImageNet-1k at 256 pixels: published top-1 79.4.
_base_ = "shvit_s1_imagenet.py"

model = dict(backbone=dict(name="shvit_s4"))
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomResizedCrop", size=256, interpolation="bicubic"),
            dict(type="RandomFlip"),
            dict(type="RandAugment", magnitude=9, num=2, magnitude_std=0.5, increasing=True),
            dict(type="PackImage"),
            dict(type="RandomErasing", probability=0.25, mode="pixel"),
        ]
    )
)
centre = [
    dict(type="Resize", size=292, interpolation="bicubic"),  # the crop is 0.875 of it
    dict(type="CenterCrop", size=256),
    dict(type="PackImage"),
]
val_dataloader = dict(dataset=dict(transforms=centre))
test_dataloader = dict(dataset=dict(transforms=centre))
optim_wrapper = dict(optimizer=dict(weight_decay=0.03))
