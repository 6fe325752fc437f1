# COCO 2017, and any data in its format. Of your own: DATA=folder python tools/train.py ..., with the folders and files
# below, or override the four places. The classes are those of the training file.
data_root = "{{$DATA:data/coco}}"
annotations = dict(train="annotations/instances_train2017.json", val="annotations/instances_val2017.json")
images = dict(train="train2017", val="val2017")

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="attlas.EpochSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),  # wide images with wide ones: less padding
    dataset=dict(
        type="attlas.CocoDetection",
        data_root=data_root,
        ann_file=annotations["train"],
        data_prefix=dict(img=images["train"]),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="Resize", scale=(1333, 800), keep_ratio=True),
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
        type="attlas.CocoDetection",
        data_root=data_root,
        ann_file=annotations["val"],
        data_prefix=dict(img=images["val"]),
        test_mode=True,
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="Resize", scale=(1333, 800), keep_ratio=True),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
val_evaluator = test_evaluator = dict(
    type="attlas.CocoBoxes", ann_file=f"{data_root}/{annotations['val']}", metric="bbox", classwise=True
)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
