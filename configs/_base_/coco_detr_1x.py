# COCO, or data like it, for a DETR, 12 epochs with 10 images a step, as the authors of Relation-DETR train it.
# `data_root`, or DATA in the environment, is its folder.
_base_ = ["detection_runtime.py", "coco_detection.py"]

# The authors' augmentation, which is DINO's: of two images one is scaled to several sizes, one is cropped before.
scales = [(side, 1333) for side in range(480, 801, 32)]
train_dataloader = dict(
    dataset=dict(
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="RandomFlip", prob=0.5),
            dict(
                type="RandomChoice",
                transforms=[
                    [dict(type="RandomChoiceResize", scales=scales, keep_ratio=True)],
                    [
                        dict(
                            type="RandomChoiceResize", scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True
                        ),
                        dict(
                            type="RandomCrop",
                            crop_type="absolute_range",
                            crop_size=(384, 600),
                            allow_negative_crop=True,
                        ),
                        dict(type="RandomChoiceResize", scales=scales, keep_ratio=True),
                    ],
                ],
            ),
            dict(type="PackDetInputs"),
        ],
    )
)

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={  # the longest that is a part of a name counts
            "backbone": dict(lr_mult=0.1),
            "sampling_offsets": dict(lr_mult=0.1),
            "sampling_offsets.bias": dict(lr_mult=0.1, decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, milestones=[10], gamma=0.1),
]
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
auto_scale_lr = dict(base_batch_size=10)
