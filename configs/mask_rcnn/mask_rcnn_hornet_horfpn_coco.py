# HorNet in Mask R-CNN with HorFPN on COCO, as the authors' config for 12 epochs. They publish no weights of it. With a
# global filter: --cfg-options model.neck.mixer.filter_size=32,17. They divide the backbone into six layers, coarse=True
# into five.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:hornet_small_7x7}}"
work_dir = f"work_dirs/mask_rcnn_{name}_horfpn_coco"
model = dict(
    backbone=dict(drop_path_rate=0.6),
    neck=dict(type="attlas.HorFPN", mixer=dict(type="GnConv", order=2, scale=1.0)),
)

# of two images one is scaled to several sizes, one is cropped before
resize = dict(type="RandomChoiceResize", scales=[(1333, side) for side in range(480, 801, 32)], keep_ratio=True)
crop = [
    dict(type="RandomChoiceResize", scales=[(1333, side) for side in (400, 500, 600)], keep_ratio=True),
    dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
]
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="RandomChoice", transforms=[[resize], [*crop, resize]]),
            dict(type="PackDetInputs"),
        ]
    )
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.95, coarse=True))
