# Relation-DETR with a backbone of the atlas, whose learning rate is a tenth of the others'. From the environment, or by
# --cfg-options:
#   name        BACKBONE     the variant; each config that has this one as a base says which if nobody does
#   pretrained  PRETRAINED   weights of the backbone to begin with: a file, None, or "auto" for those published
_base_ = ["./relation_detr.py"]

name = "{{$BACKBONE:}}"
pretrained = {"None": None}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")

model = dict(
    # statistics of batch norms stay what they are, as two images have none worth taking
    backbone=dict(type="attlas.NamedBackbone", name=name, out_indices=(1, 2, 3), norm_eval=True, pretrained=pretrained),
    neck=dict(in_channels="auto"),
)
