# IA-RED2 in UperNet on ADE20K. The last map of a plain ViT makes the pyramid. Nothing was published for it, nor any
# weights: it begins without, and keeps all tokens. For a file whose interpreters have learned, in inference:
#   PRETRAINED=FILE ... --cfg-options model.backbone.threshold=0.5
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:ia_red2_deit_small}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(
    backbone=dict(pretrained=pretrained, out_indices=(11,), threshold=0.0),
    neck=dict(type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=4, upsample=2),
)
