# RelationNet++ (BVR) on RetinaNet with ResNeXt-101 64x4d and deformable convolutions, 20 epochs: 46.5 AP on COCO val.
_base_ = ["mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", "../_base_/bvr_x101_dcn.py"]
custom_imports = dict(imports=["attlas.dense.detection"])
model = dict(
    backbone={{_base_.x101_dcn}},
    bbox_head=dict(type="attlas.BVRRetinaHead", bridging=dict(base_size=300)),
    test_cfg=dict(nms=dict(iou_threshold=0.6)),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multi_scale}}))
train_cfg = dict(max_epochs=20)
param_scheduler = {{_base_.steps_20e}}
