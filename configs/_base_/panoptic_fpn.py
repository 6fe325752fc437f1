# Panoptic FPN (Kirillov et al., arXiv 1901.02446), mmdet's, with a backbone of the atlas: Mask R-CNN for things, and a
# head on the same maps for stuff. Beside what mask_rcnn.py has, from the environment or by --cfg-options: `things` and
# `stuff`, THINGS and STUFF.
_base_ = ["mask_rcnn.py"]

things = int("{{$THINGS:80}}")  # numbers of classes; by default those of COCO's panoptic annotations
stuff = int("{{$STUFF:53}}")
model = dict(
    type="PanopticFPN",
    data_preprocessor=dict(mask_pad_value=0, pad_seg=True, seg_pad_value=255),
    roi_head=dict(bbox_head=dict(num_classes=things), mask_head=dict(num_classes=things)),
    semantic_head=dict(
        type="PanopticFPNHead",
        num_things_classes=things,
        num_stuff_classes=stuff,
        in_channels=256,
        inner_channels=128,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type="GN", num_groups=32),
        loss_seg=dict(type="CrossEntropyLoss", ignore_index=255, loss_weight=0.5),
    ),
    panoptic_fusion_head=dict(type="HeuristicFusionHead", num_things_classes=things, num_stuff_classes=stuff),
    test_cfg=dict(
        rcnn=dict(score_thr=0.6, nms=dict(class_agnostic=True)),
        panoptic=dict(mask_overlap=0.5, stuff_area_limit=4096),
    ),
)
