# SHViT in RetinaNet on COCO, 1x. Trains shvit_s1 unless told otherwise: --cfg-options name=shvit_s4
_base_ = [
    "../_base_/detection_runtime.py",
    "../_base_/coco_detection.py",
    "../_base_/schedule_detection_1x.py",
    "../_base_/retinanet.py",
]
name = "{{$BACKBONE:shvit_s1}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(
    backbone=dict(type="attlas.NamedBackbone", name=name, num_classes=None, out_indices=None, pretrained="auto")
)
