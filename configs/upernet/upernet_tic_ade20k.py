# TiC in UperNet on ADE20K. Nothing was published for it.
# The drop path is ours.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:tic_tiny}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.1))
