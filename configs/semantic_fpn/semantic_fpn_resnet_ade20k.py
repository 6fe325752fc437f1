# ResNet in Semantic FPN on ADE20K, a host for plug-ins: --cfg-options model.backbone.plugins=ELA
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:resnet50}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
