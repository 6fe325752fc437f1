# RelationNet++ (BVR) on FCOS with a large backbone. Published box AP: 48.7.
_base_ = "../_base_/bvr_x101_dcn.py"

work_dir = "work_dirs/bvr_fcos_x101_dcn_coco"
model = dict(
    type="FCOS",
    bbox_head=dict(
        type="attlas.BVRFCOSHead",
        num_classes="auto",
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        strides=[8, 16, 32, 64, 128],
        norm_cfg=None,
        conv_bias=True,
        dcn_on_last_conv=True,
        center_sampling=True,
        center_sample_radius=1.5,
        norm_on_bbox=True,
        centerness_on_reg=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        keypoint_head=dict(logits_convs=0),
        bridging=dict(base_size=300),
    ),
)
optim_wrapper = dict(
    paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0), clip_grad=dict(max_norm=35, norm_type=2)
)
