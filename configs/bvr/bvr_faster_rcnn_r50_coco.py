# RelationNet++ (BVR) on Faster R-CNN with ResNet-50, 12 epochs with 16 images a step. The paper reports such a one, but
# no code of it was released: see BVRRoIHead for what is inferred.
_base_ = [
    "../_base_/detection_runtime.py",
    "../_base_/coco_detection.py",
    "../_base_/schedule_detection_1x.py",
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
]

work_dir = "work_dirs/bvr_faster_rcnn_r50_coco"
model = dict(
    backbone=dict(init_cfg=dict(checkpoint="https://download.pytorch.org/models/resnet50-0676ba61.pth")),
    roi_head=dict(
        type="attlas.BVRRoIHead",
        num_classes="auto",
        bbox_head=dict(type="attlas.BVRShared2FCBBoxHead", num_classes="auto"),
    ),
)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4))
