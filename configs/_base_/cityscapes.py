# Cityscapes as it is published (leftImg8bit and gtFine with *_labelIds.png), in the folder DATA.
data_root = "{{$DATA:data/cityscapes}}"

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="attlas.EndlessSampler", shuffle=True),
    dataset=dict(
        type="attlas.CityscapesMaps",
        data_root=data_root,
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="attlas.ReadMap"),
            dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(512, 1024), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="attlas.CityscapesMaps",
        data_root=data_root,
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
        test_mode=True,
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
            dict(type="attlas.ReadMap"),  # behind Resize: the figures are of the pixels of the file
            dict(type="PackSegInputs"),
        ],
    ),
)
val_evaluator = test_evaluator = dict(type="attlas.MapIoU")
