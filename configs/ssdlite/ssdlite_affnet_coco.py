# AFFNet in SSDLite (arXiv 1801.04381: SSD with depth-wise convolutions) on COCO, at 320 x 320 pixels. The authors have
# code for it on the same three maps; their settings could not be read, and no AP was verified. The schedule is that of
# mmdet's SSDLite of MobileNetV2, the anchors are SSD's for COCO.
# From the environment, or by --cfg-options:
#   name        BACKBONE     the variant: affnet if nobody says
#   pretrained  PRETRAINED   weights of the backbone to begin with: a file, None, or "auto" for those published
import importlib

_base_ = ["../_base_/detection_runtime.py", "../_base_/coco_detection.py"]

name = "{{$BACKBONE:affnet}}"
pretrained = {"None": None}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
work_dir = f"work_dirs/ssdlite_{name}_coco"

maps = importlib.import_module("attlas.backbones").create(name, out_indices=(1, 2, 3)).out_channels
channels = [*maps, 512, 256, 256]  # behind the neck, which keeps its inputs and makes three smaller maps
sizes = [22, 48, 106, 163, 221, 278, 336]  # of anchors: 7, 15, 33, 51, 69, 87 and 105 percent of the image
lite = dict(use_depthwise=True, norm_cfg=dict(type="BN", eps=0.001, momentum=0.03), act_cfg=dict(type="ReLU6"))
mean, std = [0.0] * 3, [255.0] * 3  # as the weights of AFFNet are trained
model = dict(
    type="SingleStageDetector",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=mean, std=std, bgr_to_rgb=True, pad_size_divisor=1),
    backbone=dict(type="attlas.NamedBackbone", name=name, out_indices=(1, 2, 3), pretrained=pretrained),
    neck=dict(
        type="SSDNeck",
        **lite,
        in_channels="auto",
        out_channels=channels,
        level_strides=(2, 2, 2),
        level_paddings=(1, 1, 1),
        l2_norm_scale=None,
        init_cfg=dict(type="TruncNormal", layer="Conv2d", std=0.03),
    ),
    bbox_head=dict(
        type="attlas.PredictingSSDHead",
        **lite,
        in_channels=channels,
        num_classes="auto",
        init_cfg=dict(type="Normal", layer="Conv2d", std=0.001),
        anchor_generator=dict(
            type="SSDAnchorGenerator",
            scale_major=False,
            strides=[8, 16, 32, 64, 107, 160],
            ratios=[[2, 3]] * 6,
            min_sizes=sizes[:-1],
            max_sizes=sizes[1:],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
    ),
    train_cfg=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type="PseudoSampler"),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, nms=dict(type="nms", iou_threshold=0.45), min_bbox_size=0, score_thr=0.02, max_per_img=200
    ),
)
resize = dict(type="Resize", scale=(320, 320), keep_ratio=False)
train_dataloader = dict(
    batch_size=24,
    num_workers=4,
    batch_sampler=None,
    dataset=dict(
        pipeline=[
            dict(type="attlas.ReadImage"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="Expand", mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=(1, 4)),
            dict(type="MinIoURandomCrop", min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
            resize,
            dict(type="RandomFlip", prob=0.5),
            dict(
                type="PhotoMetricDistortion",
                brightness_delta=32,
                contrast_range=(0.5, 1.5),
                saturation_range=(0.5, 1.5),
                hue_delta=18,
            ),
            dict(type="PackDetInputs"),
        ]
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=8,
    dataset=dict(
        pipeline=[
            dict(type="attlas.ReadImage"),
            resize,
            dict(type="LoadAnnotations", with_bbox=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ]
    ),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.015, momentum=0.9, weight_decay=4e-5))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", begin=0, end=600, T_max=600, eta_min=0.0, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=600, val_interval=25)  # 120 of five times the data there
auto_scale_lr = dict(base_batch_size=192)
