# The furnished rooms as clouds, which tools/make_room_clouds.py writes: 14 classes of furniture, floor, wall and
# ceiling; y up. An epoch has one block of each room.
root = "{{$DATA:data/room_clouds}}"

model = dict(type="PointSegmenter", num_points=4096, block=1.5, overlap=2, up="y", draws=4, votes=1, seed=0)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="SegmentedClouds",
        root=root,
        split="train",
        transforms=[
            dict(type="RandomBlock", size=1.5, num=4096, up="y"),
            dict(type="RandomRotation", group="z", up="y"),
            dict(type="RandomScale", low=0.9, high=1.1),
        ],
    ),
)
# There is no third split: validation looks at the test rooms, unturned. We report the last checkpoint, not the best.
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(type="SegmentedClouds", root=root, split="test", transforms=[]),
)
# Tested under a rotation about the up axis, and under one of all rotations: z/z and z/SO3 in one run.
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="RotatedViews",
        dataset=dict(type="SegmentedClouds", root=root, split="test", transforms=[]),
        views=dict(z=1, SO3=1),
        up="y",
        transforms=[
            dict(type="EstimateNormals", k=32, only_missing=True)
        ],  # the rooms have theirs; scans may lack them
    ),
)
val_evaluator = test_evaluator = dict(type="SceneSegmentationMetric")
val_cfg = dict()
test_cfg = dict()
