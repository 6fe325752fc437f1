# Sparsifiner in RetinaNet on COCO. The last map makes the pyramid. The tables of the predictors are resized.
# Nothing was published for it, nor any weights: it begins without. PRETRAINED=FILE takes those of DeiT, or of a
# training of Sparsifiner's own.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:sparsifiner_small}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(
    backbone=dict(pretrained=pretrained, out_indices=(11,)),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=1),
)
