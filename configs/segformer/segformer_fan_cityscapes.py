# FAN with token-aware pooling and attention diversification under SegFormer's head (arXiv 2105.15203), mmseg's, on
# Cityscapes, as the authors: crops of 1024 x 1024, 8 images a step. Published mIoU of tap_fan_base_16_hybrid: 82.9; on
# corrupted images 69.7. The drop path is that of ImageNet, and the warm-up that of UperNet.
# From the environment, or by --cfg-options:
#   name        BACKBONE     the variant
#   pretrained  PRETRAINED   weights of the backbone to begin with: a file, None, or "auto" for those published
_base_ = "../_base_/cityscapes_160k.py"

name = "{{$BACKBONE:tap_fan_base_16_hybrid}}"
pretrained = {"None": None}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
work_dir = f"work_dirs/segformer_{name}_cityscapes"

model = dict(
    type="attlas.DiversifiedSegmentor",
    diversification=1.0,
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
    backbone=dict(type="attlas.NamedBackbone", name=name, out_indices=None, pretrained=pretrained, drop_path_rate=0.35),
    decode_head=dict(
        type="SegformerHead",
        in_channels="auto",
        in_index=[0, 1, 2, 3],
        channels=768,
        dropout_ratio=0.1,
        num_classes="auto",
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=(1024, 1024), stride=(768, 768)),
)
pipeline = _base_.train_dataloader.dataset.pipeline
pipeline[3].crop_size = (1024, 1024)
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=pipeline))  # of 8 GPUs
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"decode_head": dict(lr_mult=10.0)}),
)
auto_scale_lr = dict(base_batch_size=8)
