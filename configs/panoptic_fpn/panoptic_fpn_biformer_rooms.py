# A small BiFormer in Panoptic FPN on the built-in rooms: furniture is things, floor, wall and ceiling are stuff.
_base_ = ["../_base_/panoptic_fpn.py", "../_base_/rooms_biformer.py"]

name = "{{$BACKBONE:biformer_tiny}}"  # which the base asks for; the network below is a smaller one
pretrained = {"None": None, "auto": _base_.learned}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
heads = dict(num_things_classes=14, num_stuff_classes=3)
model = dict(
    backbone=dict(
        _delete_=True,
        **_base_.backbone,
        out_indices=(0, 1, 2, 3),
        norm_eval=bool(pretrained),
        init_cfg=pretrained and dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=14),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=14),
    ),
    semantic_head=dict(**heads, in_channels=64, inner_channels=64),
    panoptic_fusion_head=heads,
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=100),
        rcnn=dict(score_thr=0.5),
        panoptic=dict(stuff_area_limit=200),
    ),
)

load = dict(type="LoadAnnotations", with_bbox=True, with_mask=True, with_seg=True)
resize = dict(type="Resize", scale=(320, 240), keep_ratio=True)
train_dataloader = dict(
    dataset=dict(
        type="attlas.FurnishedRoomsPanoptic",
        pipeline=[
            dict(type="attlas.ReadImage"),
            load,
            resize,
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ],
    )
)
val_dataloader = test_dataloader = dict(
    dataset=dict(
        type="attlas.FurnishedRoomsPanoptic",
        pipeline=[
            dict(type="attlas.ReadImage"),
            resize,
            load,
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ],
    )
)
val_evaluator = test_evaluator = dict(_delete_=True, type="attlas.PanopticQuality")
