"""Small detectors for tests: Relation-DETR, and heads like RetinaNet's."""

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

CODER = dict(type="DeltaXYWHBBoxCoder")
ANCHORS = dict(type="AnchorGenerator", octave_base_scale=4, scales_per_octave=2, ratios=[0.5, 1.0], strides=[8, 16, 32])
ONE_ANCHOR = dict(type="AnchorGenerator", octave_base_scale=8, scales_per_octave=1, ratios=[1.0], strides=[8, 16, 32])
CENTERS = dict(type="FCOSHead", strides=[8, 16, 32], regress_ranges=((-1, 64), (64, 128), (128, 1e8)), norm_cfg=None)
# of small maps all key points that are asked for must be peaks: which of the others is chosen is not defined
KEYS = dict(keypoint_head=dict(feat_channels=8, per_level=4, num_keys=10), bridging=dict(num_heads=2, base_size=40))
HEADS = dict(
    retina=dict(type="RetinaHead", anchor_generator=ANCHORS, bbox_coder=CODER),
    softmax=dict(type="RetinaHead", anchor_generator=ANCHORS, bbox_coder=CODER, loss_cls=dict(type="CrossEntropyLoss")),
    fcos=CENTERS,
    fcos_on_size=CENTERS | dict(norm_on_bbox=True, centerness_on_reg=True),
    atss=dict(type="ATSSHead", anchor_generator=ONE_ANCHOR, bbox_coder=CODER, norm_cfg=None),
    bvr=dict(type="attlas.BVRRetinaHead", anchor_generator=ANCHORS, bbox_coder=CODER, **KEYS),
)
TRAIN = dict(
    assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
    sampler=dict(type="PseudoSampler"),
    allowed_border=-1,
    pos_weight=-1,
    debug=False,
)
TEST = dict(nms_pre=300, min_bbox_size=0, score_thr=0.3, nms=dict(type="nms", iou_threshold=0.5), max_per_img=40)


def settings(
    layers=2, num_classes=5, dim=32, levels=3, queries=10, hybrid=14, decoder_layers=3, heads=4, points=4, sines=16
):
    """A small detector on a small ResNet."""
    attention = dict(embed_dims=dim, num_levels=levels, num_heads=heads, num_points=points, dropout=0.0)
    ffn = dict(embed_dims=dim, feedforward_channels=2 * dim, ffn_drop=0.0)
    return dict(
        type="attlas.RelationDETR",
        num_queries=queries,
        num_hybrid_queries=hybrid,
        num_feature_levels=levels,
        with_box_refine=True,
        as_two_stage=True,
        backbone=dict(
            type="ResNet",
            depth=18,
            base_channels=8,
            out_indices=(1, 2, 3),
            norm_cfg=dict(type="attlas.FrozenBatchNorm2d"),
        ),
        neck=dict(
            type="ChannelMapper",
            in_channels=[16, 32, 64],
            out_channels=dim,
            kernel_size=1,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=4),
            num_outs=levels,
        ),
        encoder=dict(num_layers=layers, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
        decoder=dict(
            num_layers=decoder_layers,
            position_relation=dict(num_heads=heads, embed_dim=sines),
            scale_queries=True,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=dim, num_heads=heads, dropout=0.0), cross_attn_cfg=attention, ffn_cfg=ffn
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=dim // 2, normalize=True, offset=-0.5, temperature=10000),
        bbox_head=dict(
            type="attlas.RelationDETRHead",
            num_classes=num_classes,
            embed_dims=dim,
            sync_cls_avg_factor=True,
            hybrid_repeats=2,
            loss_cls=dict(type="attlas.DetachedVarifocalLoss"),
            loss_bbox=dict(type="L1Loss", loss_weight=5.0),
            loss_iou=dict(type="GIoULoss", loss_weight=2.0),
        ),
        dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(num_dn_queries=8)),
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


def build(options):
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(ConfigDict(options))


def detector(**sizes):
    """A small detector whose weights are all random: heads that begin with zeros would hide much."""
    model = build(settings(**sizes))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim < 2 else p[0].numel() ** -0.5)
    torch.nn.init.ones_(model.decoder.position_relation.proj.bias)
    return model


def dense(head, **test):
    """A small detector with a head of HEADS, or another, whose scores and boxes spread.

    `test` are options over those of TEST.
    """
    head = dict(HEADS[head]) if isinstance(head, str) else head
    model = build(
        dict(
            type="SingleStageDetector",
            data_preprocessor=dict(type="DetDataPreprocessor", mean=[1, 2, 3], std=[4, 5, 6], pad_size_divisor=32),
            backbone=settings()["backbone"],
            neck=dict(type="FPN", in_channels=[16, 32, 64], out_channels=16, num_outs=3),
            bbox_head=dict(num_classes=5, in_channels=16, feat_channels=16, stacked_convs=1) | head,
            train_cfg=TRAIN,
            test_cfg=TEST | test,
        )
    )
    for name, p in model.bbox_head.named_parameters():
        if p.ndim == 4:
            torch.nn.init.normal_(p, std=2 * p[0].numel() ** -0.5)
        elif name.endswith("cls.bias"):
            torch.nn.init.constant_(p, -1.0)
        elif name == "conv_reg.bias":  # the logarithm of pixels, or strides
            torch.nn.init.constant_(p, 3.0)
    return model


def two_stages(head="StandardRoIHead", **options):
    """A small Faster R-CNN, whose scores spread. `options` are of its box head."""
    return build(
        dict(
            type="FasterRCNN",
            train_cfg=None,
            data_preprocessor=dict(type="DetDataPreprocessor", mean=[1, 2, 3], std=[4, 5, 6], pad_size_divisor=32),
            backbone=settings()["backbone"],
            neck=dict(type="FPN", in_channels=[16, 32, 64], out_channels=16, num_outs=3),
            rpn_head=dict(
                type="RPNHead", in_channels=16, feat_channels=16, anchor_generator=ONE_ANCHOR, bbox_coder=CODER
            ),
            roi_head=dict(
                type=head,
                bbox_roi_extractor=dict(
                    type="SingleRoIExtractor",
                    roi_layer=dict(type="RoIAlign", output_size=3, sampling_ratio=2),
                    out_channels=16,
                    featmap_strides=[8, 16, 32],
                ),
                bbox_head=dict(
                    type="Shared2FCBBoxHead",
                    in_channels=16,
                    fc_out_channels=24,
                    roi_feat_size=3,
                    num_classes=5,
                    bbox_coder=CODER,
                    init_cfg=[dict(type="Normal", layer="Linear", std=0.3)],
                )
                | options,
            ),
            test_cfg=dict(
                rpn=dict(nms_pre=60, max_per_img=20, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
                rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=40),
            ),
        )
    )
