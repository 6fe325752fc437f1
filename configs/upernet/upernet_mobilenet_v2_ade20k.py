# MobileNetV2 in UperNet on ADE20K, a host for plug-ins: --cfg-options model.backbone.plugins=ELA
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:mobilenet_v2}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(out_indices=(1, 2, 4, 6)))
