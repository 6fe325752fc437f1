# A frozen vision transformer with the prompts of TCPA in UperNet on ADE20K, with the rescaled maps of ViTDet:
# prompts, maps and heads learn. Nothing was published for it, nor any weights: PRETRAINED=FILE takes the plain
# transformer, as timm's vit_base_patch16_224.augreg_in21k, without which there is nothing to be frozen.
import importlib

_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:tcpa_vfpt_base}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/upernet_{name}_ade20k"
variant = importlib.import_module("attlas.backbones").variant(name)[1]
model = dict(
    data_preprocessor=dict(mean=list(variant.mean), std=list(variant.std)),
    backbone=dict(
        pretrained=pretrained,
        out_indices=(2, 5, 8, 11),
        scales=(4, 2, 1, 0.5),
    ),
)
del variant
