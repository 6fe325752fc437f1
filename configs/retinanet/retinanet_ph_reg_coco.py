# A plain vision transformer with the registers of PH-Reg in RetinaNet on COCO, with the simple feature pyramid of
# ViTDet. Nothing was published for it, nor a file that a program can fetch: PRETRAINED=FILE takes a student, or the
# plain transformer. The variants are those with patches of 16 pixels; images are normalized as theirs were.
import importlib

_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:ph_reg_clip_base_patch16}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/retinanet_{name}_coco"
variant = importlib.import_module("attlas.backbones").variant(name)[1]
if variant.options.get("patch_size", 16) != 16:
    raise ValueError(f"the maps of the pyramid have their strides with patches of 16 pixels alone, got {name!r}")
model = dict(
    data_preprocessor=dict(mean=list(variant.mean), std=list(variant.std)),
    backbone=dict(pretrained=pretrained, out_indices=(-1,) * 3, scales=(2, 1, 0.5), projection=None),
    neck=dict(_delete_=True, type="attlas.SimplePyramid", in_channels="auto", out_channels=256, num_outs=5),
)
del variant
