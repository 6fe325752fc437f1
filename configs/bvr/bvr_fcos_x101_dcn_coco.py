# RelationNet++ (BVR) on FCOS with ResNeXt-101 64x4d and deformable convolutions, 20 epochs: 48.7 AP on COCO val.
_base_ = ["mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", "../_base_/bvr_x101_dcn.py"]
custom_imports = dict(imports=["attlas.dense.detection"])
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone={{_base_.x101_dcn}},
    neck=dict(relu_before_extra_convs=False),
    bbox_head=dict(
        type="attlas.BVRFCOSHead",
        norm_cfg=None,
        conv_bias=True,
        dcn_on_last_conv=True,
        center_sampling=True,
        center_sample_radius=1.5,
        norm_on_bbox=True,
        centerness_on_reg=True,
        loss_bbox=dict(type="GIoULoss"),
        keypoint_head=dict(logits_convs=0),
        bridging=dict(base_size=300),
    ),
    test_cfg=dict(nms=dict(iou_threshold=0.6)),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multi_scale}}))
train_cfg = dict(max_epochs=20)
param_scheduler = {{_base_.steps_20e}}
