# Semantic FPN (Kirillov et al., arXiv 1901.02446), mmseg's, with a backbone of the atlas.
# From the environment, or by --cfg-options:
#   name        BACKBONE     the variant; each config that has this one as a base says which if nobody does
#   pretrained  PRETRAINED   weights of the backbone to begin with: a file, None, or "auto" for those published
name = "{{$BACKBONE:}}"
pretrained = {"None": None}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,  # images that are smaller than the crop are filled up to the largest of their batch
    ),
    # all of its maps
    backbone=dict(type="attlas.NamedBackbone", name=name, out_indices=None, pretrained=pretrained),
    neck=dict(type="FPN", in_channels="auto", out_channels=256, num_outs=4),
    decode_head=dict(
        type="FPNHead",
        in_channels="auto",
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes="auto",
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    # windows: --cfg-options model.test_cfg.mode=slide model.test_cfg.crop_size=512,512 model.test_cfg.stride=341,341
    test_cfg=dict(mode="whole"),
)
