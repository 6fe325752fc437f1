# DependencyViT in Mask R-CNN on COCO. The last map of a plain ViT makes the pyramid.
# Nothing was published for it, nor any weights: it begins without. PRETRAINED=FILE takes yours.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:dependencyvit_tiny}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(
    backbone=dict(pretrained=pretrained, out_indices=(11,)),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=2),
)
