# Relation-DETR with ResNet-50 on COCO, 12 epochs, as the authors: 10 images a step. Published: AP 51.7, AP50 69.1.
#   python tools/train.py configs/relation_detr/relation_detr_r50_coco.py
# The backbone starts from torchvision's second ImageNet weights; a file of torchvision or timm may stand there, too.
# The authors' checkpoint of 91 classes loads into COCO's 80: load_from = "relation_detr_resnet50_800_1333_coco_1x.pth".
# For other classes, beside load_from: ignore_mismatched = [r"cls_branches", r"label_embedding"].
_base_ = ["../_base_/detection_runtime.py", "../_base_/coco_detection.py"]

work_dir = "work_dirs/relation_detr_r50_coco"
dim, levels, heads = 256, 4, 8
attention = dict(embed_dims=dim, num_levels=levels, num_heads=heads, num_points=4, dropout=0.0)
ffn = dict(embed_dims=dim, feedforward_channels=2048, ffn_drop=0.0)

model = dict(
    type="attlas.RelationDETR",
    num_queries=900,
    num_hybrid_queries=1500,
    num_feature_levels=levels,
    with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="attlas.FrozenBatchNorm2d"),
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="https://download.pytorch.org/models/resnet50-11ad3fa6.pth"),
    ),
    neck=dict(
        type="ChannelMapper",
        in_channels=[512, 1024, 2048],
        kernel_size=1,
        out_channels=dim,
        act_cfg=None,
        norm_cfg=dict(type="GN", num_groups=32),
        num_outs=levels,
    ),
    encoder=dict(num_layers=6, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=6,
        position_relation=dict(num_heads=heads),
        scale_queries=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=dim, num_heads=heads, dropout=0.0), cross_attn_cfg=attention, ffn_cfg=ffn
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=dim // 2, normalize=True, offset=-0.5, temperature=10000),
    bbox_head=dict(
        type="attlas.RelationDETRHead",
        num_classes="auto",
        embed_dims=dim,
        hybrid_repeats=6,
        sync_cls_avg_factor=True,
        loss_cls=dict(type="attlas.DetachedVarifocalLoss", alpha=0.75, gamma=2.0, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    ),
    # a label is replaced with half the probability that is called its scale
    dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(dynamic=True, num_dn_queries=100)),
    train_cfg=dict(
        assigner=dict(
            type="HungarianAssigner",
            match_costs=[
                dict(type="FocalLossCost", weight=2.0),
                dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                dict(type="IoUCost", iou_mode="giou", weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=300),
)

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
