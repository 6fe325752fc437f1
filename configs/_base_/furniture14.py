# The built-in data: 286 furniture models to train on, 122 to test, in 14 classes; points are sampled afresh each epoch.
# Trained under rotations about the up axis (the z of the protocols); the `_so3` configs say otherwise.
train_dataloader = dict(
    batch_size=16,
    num_workers=0,  # sampling takes 1 ms a cloud; on a CPU the network wants the cores
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="Furniture14",
        split="train",
        transforms=[
            dict(type="SamplePoints", num=1024, include_normals=True),
            dict(type="RandomRotation", group="z", up="y"),
            # after the rotation, so that no knowledge of the pose enters but that of the protocol
            dict(type="RandomScale", low=0.75, high=1.25, anisotropic=True),
            dict(type="UnitSphere"),
            dict(type="RandomScale", low=0.9, high=1.1),
        ],
    ),
)
# Tested under one rotation about the up axis, and under four of all rotations: z/z and z/SO3 in one run.
test_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="RotatedViews",
        dataset=dict(
            type="Furniture14",
            split="test",
            transforms=[dict(type="SamplePoints", num=1024, include_normals=True), dict(type="UnitSphere")],
        ),
        views=dict(z=1, SO3=4),
        up="y",
    ),
)
# There is no third split: validation looks at the test clouds, unturned. We report the last checkpoint, not the best.
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="Furniture14",
        split="test",
        transforms=[dict(type="SamplePoints", num=1024, include_normals=True), dict(type="UnitSphere")],
    ),
)
val_evaluator = test_evaluator = dict(type="ClassificationMetric")
val_cfg = dict()
test_cfg = dict()
