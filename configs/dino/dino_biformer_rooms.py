# A small BiFormer in a small DINO (Zhang et al., arXiv 2203.03605) on the built-in rooms: minutes on a CPU.
_base_ = ["../_base_/rooms_biformer.py"]

pretrained = {"None": None, "auto": _base_.learned}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
dim, levels, heads = 64, 3, 4
attention = dict(embed_dims=dim, num_levels=levels, num_heads=heads, num_points=4, dropout=0.0)
ffn = dict(embed_dims=dim, feedforward_channels=256, ffn_drop=0.0)
model = dict(
    type="attlas.RelationDINO",
    num_queries=100,
    num_feature_levels=levels,
    with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=_base_.preprocessor,
    backbone=dict(
        **_base_.backbone,
        out_indices=(1, 2, 3),
        norm_eval=bool(pretrained),
        init_cfg=pretrained and dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(
        type="ChannelMapper",
        in_channels=[64, 128, 192],
        kernel_size=1,
        out_channels=dim,
        act_cfg=None,
        norm_cfg=dict(type="GN", num_groups=16),
        num_outs=levels,
    ),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=dim, num_heads=heads, dropout=0.0), cross_attn_cfg=attention, ffn_cfg=ffn
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=dim // 2, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type="DINOHead",
        num_classes=14,
        embed_dims=dim,
        sync_cls_avg_factor=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    ),
    dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(dynamic=True, num_dn_queries=50)),
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
    test_cfg=dict(max_per_img=100),
)
train_dataloader = dict(batch_size=2)  # more updates: a DETR needs them
optim_wrapper = dict(optimizer=dict(lr=7e-4, weight_decay=1e-4), clip_grad=dict(max_norm=0.1))
