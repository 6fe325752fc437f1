# RelationNet++ (BVR) on RetinaNet with ResNet-50, 12 epochs with 16 images a step. Published box AP: 38.5.
_base_ = [
    "../_base_/detection_runtime.py",
    "../_base_/coco_detection.py",
    "../_base_/schedule_detection_1x.py",
    "mmdet::_base_/models/retinanet_r50_fpn.py",
]

work_dir = "work_dirs/bvr_retinanet_r50_coco"
norm = dict(type="GN", num_groups=32, requires_grad=True)
model = dict(
    backbone=dict(init_cfg=dict(checkpoint="https://download.pytorch.org/models/resnet50-0676ba61.pth")),
    neck=dict(norm_cfg=norm),
    bbox_head=dict(type="attlas.BVRRetinaHead", num_classes="auto", norm_cfg=norm, keypoint_head=dict(norm_cfg=norm)),
)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4))
