# UFC on SPair-71k, on ResNet-34 without the pooling of its stem. The network is that of CoPoNeRF's code. How the paper
# trains is not published: the losses, the schedule and the smaller rate of the backbone are ours.
_base_ = ["../_base_/default_runtime.py"]

data_root = "data/SPair-71k"
pretrained = None  # a file for the backbone, such as torchvision's resnet34
model = dict(
    type="Matcher",
    size=(256, 256),
    backbone=dict(
        type="NamedBackbone",
        name="resnet34",
        strides=(2, 4, 8, 16),
        out_indices=(1, 2, 3),
        norm_eval=True,
        pretrained=pretrained,
    ),
    network=dict(type="UFC", refine_last=False),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    dataset=dict(
        type="SPair71k", root=data_root, split="trn", transforms=[dict(type="PackMatches", swap=True, flip=True)]
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="SPair71k", root=data_root, split="val", transforms=[dict(type="PackMatches")]),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="SPair71k", root=data_root, split="test", transforms=[dict(type="PackMatches")]),
)
val_evaluator = test_evaluator = [dict(type="PCK", of="bbox", by_category=True)]
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=1.0),
)
max_epochs = 20
train_cfg = dict(by_epoch=True, max_epochs=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=max_epochs, end=max_epochs, eta_min=1e-6),
]
