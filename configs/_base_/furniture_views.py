# The built-in pictures: 286 furniture models to train on, 122 to test, in 14 classes, each seen from 16 random sides
# (rendered at the first use, in half a minute, and cached). Nothing is downloaded.
train_dataloader = dict(
    batch_size=64,
    num_workers=0,  # a picture takes half a millisecond; on a CPU the network wants the cores
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="FurnitureViews",
        split="train",
        transforms=[
            dict(type="RandomResizedCrop", size=64, scale=(0.5, 1.0)),
            dict(type="RandomFlip"),
            dict(type="PackImage"),
        ],
    ),
)
# There is no third split: validation looks at the test pictures. We report the last checkpoint, not the best.
val_dataloader = test_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="FurnitureViews", split="test", transforms=[dict(type="Resize", size=64), dict(type="PackImage")]
    ),
)
val_evaluator = test_evaluator = dict(type="ImageAccuracy")
val_cfg = dict()
test_cfg = dict()
