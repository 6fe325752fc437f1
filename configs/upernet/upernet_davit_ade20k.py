# DaViT in UperNet on ADE20K. Published mIoU: davit_tiny 46.3, davit_small 48.8,
# davit_base 49.4.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:davit_tiny}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.3))
