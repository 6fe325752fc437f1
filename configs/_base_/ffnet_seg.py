# FFNet-seg (Yun et al., arXiv 2406.02021): a segmentor with a backbone and a head of its own.
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
    backbone=dict(type="attlas.NamedBackbone", name=name, out_indices=(1, 2, 3), pretrained=pretrained),
    decode_head=dict(
        type="attlas.FFNetSegHead",
        in_channels="auto",
        in_index=[0, 1, 2],
        channels=1024,
        width=256,
        kernel_size=9,
        dropout_ratio=0.1,
        num_classes="auto",
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    # windows: --cfg-options model.test_cfg.mode=slide model.test_cfg.crop_size=512,512 model.test_cfg.stride=341,341
    test_cfg=dict(mode="whole"),
)
