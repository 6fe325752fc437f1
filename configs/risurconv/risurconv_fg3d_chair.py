# RISurConv as released, on the chairs of FG3D: published class accuracy 78.5 (the order of the three is inferred).
_base_ = "risurconv_modelnet40.py"

root = "data/FG3D"
category = "Chair"

model = dict(network=dict(num_classes=33))
sampling = [dict(type="PoissonPoints", num=1024, init_factor=5), dict(type="UnitSphere")]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="FG3D",
        root=root,
        category=category,
        split="train",
        transforms=[
            *sampling,
            dict(type="RandomDropout", max_ratio=0.875),
            dict(type="RandomScale", low=0.8, high=1.25),
            dict(type="RandomShift", distance=0.1),
        ],
    )
)
test_set = dict(type="FG3D", root=root, category=category, split="test", transforms=sampling)
val_dataloader = dict(dataset=dict(_delete_=True, **test_set))
test_dataloader = dict(dataset=dict(dataset=dict(_delete_=True, **test_set)))
param_scheduler = [
    dict(type="StepLR", step_size=20, gamma=0.7),
    dict(type="MultiStepLR", milestones=[300], gamma=0.7**-15),
    dict(type="MultiStepLR", milestones=[600], gamma=0.8 * 0.7**-15),  # back to 8e-4
]
train_cfg = dict(max_epochs=900)
default_hooks = dict(checkpoint=dict(save_best="mAcc"))
