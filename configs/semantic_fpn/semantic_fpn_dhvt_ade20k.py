# DHVT in Semantic FPN on ADE20K. The last map of a plain ViT makes the pyramid. Nothing was published for it, nor any
# weights: it begins without, and batch norms take the statistics of their images. PRETRAINED=FILE takes yours. The
# variants are those with patches of 16 pixels.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:dhvt_tiny_imagenet_patch16}}"
if not name.endswith("_patch16"):
    raise ValueError(f"the maps of the pyramid have their strides with patches of 16 pixels alone, got {name!r}")
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(
    backbone=dict(pretrained=pretrained, out_indices=(11,)),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=4, upsample=2),
)
