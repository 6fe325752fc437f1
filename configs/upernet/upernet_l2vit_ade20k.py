# L2ViT in UperNet on ADE20K, as the authors' configs, whose figures are in the paper alone.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:l2vit_tiny}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.3))
