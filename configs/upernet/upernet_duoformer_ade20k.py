# DuoFormer in UperNet on ADE20K, with the maps behind scale attention. Nothing was published for it, nor any
# weights: it begins without. PRETRAINED=FILE takes yours; weights of the pyramid alone:
#   --cfg-options model.backbone.pyramid.type=NamedBackbone model.backbone.pyramid.name=resnet50
#     model.backbone.pyramid.pretrained=resnet50.pth
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:duoformer_resnet50_3}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(pretrained=pretrained))
