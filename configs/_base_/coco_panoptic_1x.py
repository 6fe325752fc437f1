# COCO's panoptic annotations, or data in their format, 12 epochs ("1x"). `data_root`, or DATA in the environment, is
# the folder. Of other classes than COCO's: metainfo=dict(classes=..., thing_classes=..., stuff_classes=...) of both
# data sets, those of things first.
_base_ = ["detection_runtime.py", "schedule_detection_1x.py"]

data_root = "{{$DATA:data/coco}}"
resize = dict(type="Resize", scale=(1333, 800), keep_ratio=True)
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="attlas.EpochSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        type="CocoPanopticDataset",
        data_root=data_root,
        ann_file="annotations/panoptic_train2017.json",
        data_prefix=dict(img="train2017", seg="annotations/panoptic_train2017"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="attlas.ReadPanoptic"),
            resize,
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoPanopticDataset",
        data_root=data_root,
        ann_file="annotations/panoptic_val2017.json",
        data_prefix=dict(img="val2017", seg="annotations/panoptic_val2017"),
        test_mode=True,
        pipeline=[
            dict(type="attlas.ReadImage"),
            resize,
            dict(type="attlas.ReadPanoptic"),
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ],
    ),
)
val_evaluator = test_evaluator = dict(type="attlas.PanopticQuality")
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    constructor="attlas.LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
)
