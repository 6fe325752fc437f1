# A frozen vision transformer with the prompts of TCPA in Relation-DETR on COCO, with the simple feature pyramid of
# ViTDet: prompts, pyramid and heads learn. Nothing was published for it, nor any weights: PRETRAINED=FILE takes the
# plain transformer, as timm's vit_base_patch16_224.augreg_in21k, without which there is nothing to be frozen.
import importlib

_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:tcpa_vfpt_base}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/relation_detr_{name}_coco"
variant = importlib.import_module("attlas.backbones").variant(name)[1]
model = dict(
    data_preprocessor=dict(mean=list(variant.mean), std=list(variant.std)),
    backbone=dict(pretrained=pretrained, out_indices=(-1,) * 3, scales=(2, 1, 0.5)),
    neck=dict(_delete_=True, type="attlas.SimplePyramid", in_channels="auto", out_channels=256, num_outs=4),
)
del variant
