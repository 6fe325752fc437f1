# The built-in pairs: views of furnished rooms, 128 x 96, with a match for each pixel that both see (rendered when they
# are first asked for, and kept). Nothing is downloaded.
_size = (128, 96)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,  # Open3D, which renders what is missing, does not survive a fork
    sampler=dict(type="EndlessSampler"),
    dataset=dict(
        type="RoomPairs",
        split="train",
        count=64,
        size=_size,
        transforms=[dict(type="PackMatches", most=512, flip=True)],
    ),
)
# There is no third split: validation looks at the test rooms. We report the last checkpoint, not the best.
val_dataloader = test_dataloader = dict(
    batch_size=6,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="RoomPairs", split="test", count=16, size=_size, transforms=[dict(type="PackMatches")]),
)
val_evaluator = test_evaluator = [dict(type="EndPointError"), dict(type="PCK", of="image", alphas=(0.05, 0.1))]
val_cfg = dict()
test_cfg = dict()
