# RelationNet++ (BVR) on ATSS with a large backbone. Published box AP: 50.6.
_base_ = "../_base_/bvr_x101_dcn.py"

work_dir = "work_dirs/bvr_atss_x101_dcn_coco"
model = dict(
    type="ATSS",
    bbox_head=dict(
        type="attlas.BVRATSSHead",
        num_classes="auto",
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        dcn_on_last_conv=True,
        anchor_generator=dict(
            type="AnchorGenerator",
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        bridging=dict(base_size=300, shared_between_branches=True),
    ),
    train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False),
)
