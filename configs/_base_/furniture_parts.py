# The parts of the built-in furniture: 128 models to train on, 60 to test, 17 parts of eight categories; y up.
# Trained under rotations about the up axis (the z of the protocols); the `_so3` configs say otherwise.
model = dict(type="PointSegmenter", num_points=1024, votes=1, seed=0)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,  # a cloud takes 2 ms; on a CPU the network wants the cores
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="FurnitureParts",
        split="train",
        points=8192,  # of which each epoch chooses others
        transforms=[
            dict(type="RandomPoints", num=1024),
            dict(type="RandomRotation", group="z", up="y"),
            # after the rotation, so that no knowledge of the pose enters but that of the protocol
            dict(type="RandomScale", low=0.75, high=1.25, anisotropic=True),
            dict(type="UnitSphere"),
            dict(type="RandomScale", low=0.9, high=1.1),
        ],
    ),
)
# Whole clouds: the model draws points until each that the data have is labelled.
whole = [dict(type="UnitSphere")]
# There is no third split: validation looks at the test clouds, unturned. We report the last checkpoint, not the best.
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(type="FurnitureParts", split="test", points=2048, transforms=whole),
)
# Tested under a rotation about the up axis, and under four of all rotations: z/z and z/SO3 in one run.
test_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="RotatedViews",
        dataset=dict(type="FurnitureParts", split="test", points=2048, transforms=whole),
        views=dict(z=1, SO3=4),
        up="y",
    ),
)
val_evaluator = test_evaluator = dict(type="PartSegmentationMetric")
val_cfg = dict()
test_cfg = dict()
