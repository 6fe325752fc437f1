# S3DIS as it is published: rooms of six areas, of which area 5 is tested; z up. An epoch has one block of each room.
# The recipe is ours, for no network has a published one that fits all.
root = "{{$DATA:data/Stanford3dDataset_v1.2_Aligned_Version}}"
cache = "data/cache/s3dis"  # parsing the text takes minutes

model = dict(type="PointSegmenter", num_points=4096, block=1.0, overlap=2, up="z", draws=2, votes=1, seed=0)
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="S3DIS",
        root=root,
        cache=cache,
        split="train",
        transforms=[
            dict(type="RandomBlock", size=1.0, num=None, up="z"),
            dict(type="EstimateNormals", k=32),  # on all points of the block, as in a test
            dict(type="RandomPoints", num=4096),
            dict(type="RandomRotation", group="z", up="z"),
            dict(type="RandomScale", low=0.9, high=1.1),
        ],
    ),
)
# Whole rooms: the model cuts them into blocks that overlap, and labels every point.
test_set = dict(type="S3DIS", root=root, cache=cache, split="test")
normals = dict(type="EstimateNormals", k=32)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(**test_set, transforms=[normals]),
)
# Tested under a rotation about the up axis, and under one of all rotations: z/z and z/SO3 in one run.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="RotatedViews",
        dataset=dict(**test_set, transforms=[]),
        views=dict(z=1, SO3=1),
        up="z",
        transforms=[normals],
    ),
)
val_evaluator = test_evaluator = dict(type="SceneSegmentationMetric")
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-2),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = dict(type="CosineAnnealingLR", T_max=1000, eta_min=1e-5, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=1000, val_interval=250)
auto_scale_lr = dict(base_batch_size=16)
