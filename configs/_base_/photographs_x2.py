# The built-in photographs at half their size: 11 to train on and 5 to test. Nothing is downloaded.
# dense/restoration/PHOTOGRAPHS.md says whose they are.
_degradation = dict(type="Bicubic", scale=2)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="EndlessSampler"),
    dataset=dict(
        type="Photographs",
        split="train",
        degradation=_degradation,
        patch=32,
        symmetries=True,
        transforms=[dict(type="PackPair")],
    ),
)
# There is no third split: validation looks at the test photographs. We report the last checkpoint, not the best.
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="Photographs", split="test", degradation=_degradation, transforms=[dict(type="PackPair")]),
)
