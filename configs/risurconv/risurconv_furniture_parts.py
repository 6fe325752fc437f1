# RISurConv, at half its width and half its points, on the parts of the built-in furniture.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_parts.py", "../_base_/schedule_adamw.py"]

model = dict(
    network=dict(
        type="RISurConvSegmenter",
        num_classes=17,
        num_categories=8,
        num_points=256,
        channels=(32, 64, 128, 256),
        neighbors=(8, 16, 16, 32),
        decoder=((256, 256), (128, 128), (64, 64), (32,)),
        decoder_neighbors=(16, 16, 16, 8),
        width=32,
    )
)
