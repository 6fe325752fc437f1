# RISurConv, at half its width, on the furnished rooms as clouds.
_base_ = ["../_base_/default_runtime.py", "../_base_/schedule_adamw.py", "../_base_/room_clouds.py"]

model = dict(
    network=dict(
        type="RISurConvSegmenter",
        num_classes=17,
        num_categories=0,
        channels=(32, 64, 128, 256),
        neighbors=(8, 16, 16, 32),
        decoder=((256, 256), (128, 128), (64, 64), (32,)),
        decoder_neighbors=(16, 16, 16, 8),
        width=32,
    )
)
