# A plain vision transformer in Semantic FPN on ADE20K, with the rescaled maps of ViTDet. The variants are those with
# patches of 16 pixels; images are normalized as theirs were.
import importlib

_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:deit_tiny}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
variant = importlib.import_module("attlas.backbones").variant(name)[1]
if variant.options.get("patch_size", 16) != 16:
    raise ValueError(f"the maps of the pyramid have their strides with patches of 16 pixels alone, got {name!r}")
model = dict(
    data_preprocessor=dict(mean=list(variant.mean), std=list(variant.std)),
    backbone=dict(
        out_indices=(2, 5, 8, 11) if variant.options["depth"] == 12 else (5, 11, 17, 23),
        scales=(4, 2, 1, 0.5),
        projection=None,
    ),
)
del variant
