# A plain vision transformer with the registers of PH-Reg in UperNet on ADE20K, with the rescaled maps of ViTDet.
# Nothing was published for it, nor a file that a program can fetch: PRETRAINED=FILE takes a student, or the plain
# transformer. The variants are those with patches of 16 pixels; images are normalized as theirs were.
import importlib

_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:ph_reg_clip_base_patch16}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/upernet_{name}_ade20k"
variant = importlib.import_module("attlas.backbones").variant(name)[1]
if variant.options.get("patch_size", 16) != 16:
    raise ValueError(f"the maps of the pyramid have their strides with patches of 16 pixels alone, got {name!r}")
model = dict(
    data_preprocessor=dict(mean=list(variant.mean), std=list(variant.std)),
    backbone=dict(
        pretrained=pretrained,
        out_indices=(2, 5, 8, 11) if variant.options["depth"] == 12 else (5, 11, 17, 23),
        scales=(4, 2, 1, 0.5),
        projection=None,
    ),
)
del variant
