# RISurConv, at half its width, on the furnished rooms as clouds. It sees balls, which turn with the room.
_base_ = ["../_base_/default_runtime.py", "../_base_/schedule_adamw.py", "../_base_/room_clouds.py"]

model = dict(
    block=2.5,
    block_shape="ball",
    overlap=1,
    network=dict(
        type="RISurConvSegmenter",
        num_classes=17,
        num_categories=0,
        channels=(32, 64, 128, 256),
        neighbors=(8, 16, 16, 32),
        decoder=((256, 256), (128, 128), (64, 64), (32,)),
        decoder_neighbors=(16, 16, 16, 8),
        width=32,
    ),
)

train_transforms = _base_.train_dataloader.dataset.transforms
train_transforms[0] = dict(type="RandomBlock", shape="ball", size=2.5, num=4096)
train_dataloader = dict(dataset=dict(transforms=train_transforms))
