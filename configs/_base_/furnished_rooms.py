# The built-in images for detectors: 600 furnished rooms to train on and 150 to test, 320 x 240, with boxes and masks of
# 14 classes (made at the first use, in some minutes, and cached). Nothing is downloaded.
# Look at them: python tools/browse_dataset.py configs/_base_/furnished_rooms.py
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="attlas.EpochSampler", shuffle=True),
    dataset=dict(
        type="attlas.FurnishedRooms",
        split="train",
        count=600,
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="mmdet.Resize", scale=(320, 240), keep_ratio=True),
            dict(type="mmdet.RandomFlip", prob=0.5),
            dict(type="mmdet.PackDetInputs"),
        ],
    ),
)
# There is no third split: validation looks at the test rooms. We report the last checkpoint, not the best.
val_dataloader = test_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="attlas.FurnishedRooms",
        split="test",
        count=150,
        test_mode=True,
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="mmdet.Resize", scale=(320, 240), keep_ratio=True),
            dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                type="mmdet.PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
val_evaluator = test_evaluator = dict(type="attlas.FurnishedRoomsBoxes", split="test", count=150, metric="bbox")
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
