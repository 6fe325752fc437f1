# COCO, or data like it, for boxes and masks, 12 epochs ("1x"). `data_root`, or DATA in the environment, is its folder.
_base_ = ["detection_runtime.py", "coco_detection.py", "schedule_detection_1x.py"]

resize = dict(type="Resize", scale=(1333, 800), keep_ratio=True)
objects = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="attlas.ReadImage"),
            objects,
            resize,
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ]
    )
)
val_dataloader = test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="attlas.ReadImage"),
            resize,
            objects,
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ]
    )
)
val_evaluator = test_evaluator = dict(metric=["bbox", "segm"])
optim_wrapper = dict(
    constructor="attlas.LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
)
