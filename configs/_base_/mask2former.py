# Mask2Former (Cheng et al., arXiv 2112.01527), mmseg's head on mmdet's, with a backbone of the atlas. From the
# environment, or by --cfg-options:
#   name        BACKBONE     the variant; each config that has this one as a base says which if nobody does
#   pretrained  PRETRAINED   weights of the backbone to begin with: a file, None, or "auto" for those published
#   classes     CLASSES      number of classes, which the weights of the loss need (150)
name = "{{$BACKBONE:}}"
pretrained = {"None": None}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
classes = int("{{$CLASSES:150}}")

dim, heads = 256, 8
code = dict(num_feats=dim // 2, normalize=True)
attention = dict(embed_dims=dim, num_heads=heads, dropout=0.0, batch_first=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(type="attlas.NamedBackbone", name=name, out_indices=(0, 1, 2, 3), pretrained=pretrained),
    decode_head=dict(
        type="Mask2FormerHead",
        in_channels="auto",
        strides=[4, 8, 16, 32],
        feat_channels=dim,
        out_channels=dim,
        num_classes=classes,
        num_queries=100,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder",
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(**attention, num_levels=3, num_points=4),
                    ffn_cfg=dict(embed_dims=dim, feedforward_channels=1024, ffn_drop=0.0),
                ),
            ),
            positional_encoding=code,
        ),
        enforce_decoder_input_project=False,
        positional_encoding=code,
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=9,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=dim, feedforward_channels=2048, ffn_drop=0.0),
            ),
            init_cfg=None,
        ),
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss",
            loss_weight=2.0,
            class_weight=[1.0] * classes + [0.1],  # the last is "no object"
        ),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, loss_weight=5.0),
        loss_dice=dict(type="mmdet.DiceLoss", use_sigmoid=True, naive_dice=True, eps=1.0, loss_weight=5.0),
        train_cfg=dict(
            num_points=12544,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type="mmdet.HungarianAssigner",
                match_costs=[
                    dict(type="mmdet.ClassificationCost", weight=2.0),
                    dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
                    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type="mmdet.MaskPseudoSampler"),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
