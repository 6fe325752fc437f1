# A small Relation-DETR on the data of tiny_detector.py, at twice the size.
_base_ = "tiny_detector.py"

dim, heads, levels = 32, 4, 3
attention = dict(embed_dims=dim, num_levels=levels, num_heads=heads, num_points=2, dropout=0.0)
ffn = dict(embed_dims=dim, feedforward_channels=64, ffn_drop=0.0)
model = dict(
    _delete_=True,
    type="attlas.RelationDETR",
    num_queries=20,
    num_hybrid_queries=30,
    num_feature_levels=levels,
    with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(type="attlas.HorNet", dims=(16, 24, 32, 48), depths=(1, 1, 1, 1), out_indices=(0, 1, 2)),
    neck=dict(
        type="ChannelMapper",
        in_channels="auto",
        out_channels=dim,
        kernel_size=1,
        act_cfg=None,
        norm_cfg=dict(type="GN", num_groups=4),
        num_outs=levels,
    ),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=3,
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
        sync_cls_avg_factor=True,
        hybrid_repeats=3,
        loss_cls=dict(type="attlas.DetachedVarifocalLoss"),
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    ),
    dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(num_dn_queries=20)),
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
    test_cfg=dict(max_per_img=10),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
