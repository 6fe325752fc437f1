# RelationNet++ (BVR) on RetinaNet with ResNet-50, 1x: 38.5 AP on COCO val. 16 images a step.
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["attlas.dense.detection"])
norm = dict(type="GN", num_groups=32, requires_grad=True)
model = dict(
    neck=dict(norm_cfg=norm),
    bbox_head=dict(type="attlas.BVRRetinaHead", norm_cfg=norm, keypoint_head=dict(norm_cfg=norm)),
)
