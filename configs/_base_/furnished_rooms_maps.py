# The built-in images for segmentation: 600 furnished rooms to train on and 150 to test, 320 x 240, with maps of 17
# classes (made at the first use, in some minutes, and cached). Nothing is downloaded.
# Look at them: python tools/browse_dataset.py configs/_base_/furnished_rooms_maps.py
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="attlas.EndlessSampler", shuffle=True),
    dataset=dict(
        type="attlas.FurnishedRoomsMaps",
        split="train",
        count=600,
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="attlas.ReadMap"),
            dict(
                type="RandomResize",
                scale=(320, 240),
                ratio_range=(0.8, 1.5),
                keep_ratio=True,
                resize_type="mmseg.Resize",
            ),
            dict(type="mmseg.RandomCrop", crop_size=(192, 256)),
            dict(type="mmseg.RandomFlip", prob=0.5),
            dict(type="mmseg.PackSegInputs"),
        ],
    ),
)
# There is no third split: validation looks at the test rooms. We report the last checkpoint, not the best.
val_dataloader = test_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="attlas.FurnishedRoomsMaps",
        split="test",
        count=150,
        test_mode=True,
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="attlas.ReadMap"),
            dict(type="mmseg.PackSegInputs"),
        ],
    ),
)
val_evaluator = test_evaluator = dict(type="attlas.MapIoU")
