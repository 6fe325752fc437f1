# AFFNet in DeepLabv3 (Chen et al., arXiv 1706.05587), mmseg's, on ADE20K. Published mIoU: affnet_et 33.0, affnet_t
# 36.9, affnet 38.4; on Pascal VOC 76.1, 77.8, 80.5. The authors' settings could not be read: width and rates of the
# head are the defaults of their code, and the width explains the published 2.2 and 3.5 million parameters. mmseg's head
# ends with a 3x3 convolution where theirs has a 1x1 one, which makes 2.6 million more.
# From the environment, or by --cfg-options:
#   name        BACKBONE     the variant: affnet if nobody says
#   pretrained  PRETRAINED   weights of the backbone to begin with: a file, None, or "auto" for those published
_base_ = ["../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:affnet}}"
pretrained = {"None": None}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
work_dir = f"work_dirs/deeplabv3_{name}_ade20k"

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[0.0] * 3,
        std=[255.0] * 3,  # as the weights of AFFNet are trained
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,  # images that are smaller than the crop are filled up to the largest of their batch
    ),
    # the last map at stride 16, as the third
    backbone=dict(type="attlas.NamedBackbone", name=name, out_indices=(3,), output_stride=16, pretrained=pretrained),
    decode_head=dict(
        type="ASPPHead",
        in_channels="auto",
        in_index=0,
        channels=256,
        dilations=(1, 6, 12, 18),
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
