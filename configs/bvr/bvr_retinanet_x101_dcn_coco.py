# RelationNet++ (BVR) on RetinaNet with a large backbone. Published box AP: 46.5.
_base_ = "../_base_/bvr_x101_dcn.py"

work_dir = "work_dirs/bvr_retinanet_x101_dcn_coco"
model = dict(
    type="RetinaNet",
    neck=dict(add_extra_convs="on_input"),
    bbox_head=dict(
        type="attlas.BVRRetinaHead",
        num_classes="auto",
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        anchor_generator=dict(
            type="AnchorGenerator",
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        bridging=dict(base_size=300),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
)
