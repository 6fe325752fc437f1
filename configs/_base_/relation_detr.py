# Relation-DETR (arXiv 2407.11699) as the authors have it, but for the backbone and the channels of its maps, which have
# strides 8, 16 and 32. The neck adds one of stride 64.
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
    neck=dict(
        type="ChannelMapper",
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
