# DHVT in RetinaNet on COCO. The last map of a plain ViT makes the pyramid. Nothing was published for it, nor any
# weights: it begins without, and batch norms take the statistics of their images. PRETRAINED=FILE takes yours. The
# variants are those with patches of 16 pixels.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:dhvt_tiny_imagenet_patch16}}"
if not name.endswith("_patch16"):
    raise ValueError(f"the maps of the pyramid have their strides with patches of 16 pixels alone, got {name!r}")
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(
    backbone=dict(pretrained=pretrained, out_indices=(11,), norm_eval=False),
    neck=dict(_delete_=True, type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=5, upsample=1),
)
