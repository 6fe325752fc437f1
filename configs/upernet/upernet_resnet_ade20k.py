# ResNet in UperNet on ADE20K, a host for plug-ins: --cfg-options model.backbone.plugins=ELA
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:resnet50}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
