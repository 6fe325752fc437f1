# ImageNet-1k at 224 pixels, as data/imagenet/{train,val}/<wnid>/*.JPEG: the augmentation that most recipes since DeiT
# share. Mixup, CutMix and label smoothing are the model's; repeated augmentation is a sampler, RepeatedAugmentSampler.
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        root="data/imagenet",
        split="train",
        transforms=[
            dict(type="RandomResizedCrop", size=224, interpolation="bicubic"),
            dict(type="RandomFlip"),
            dict(type="RandAugment", magnitude=9, num=2, magnitude_std=0.5, increasing=True),
            dict(type="PackImage"),
            dict(type="RandomErasing", probability=0.25, mode="pixel"),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        root="data/imagenet",
        split="val",
        transforms=[
            dict(type="Resize", size=256, interpolation="bicubic"),  # the crop is 0.875 of it
            dict(type="CenterCrop", size=224),
            dict(type="PackImage"),
        ],
    ),
)
val_evaluator = test_evaluator = dict(type="ImageAccuracy")
val_cfg = dict()
test_cfg = dict()
