# TiC in Semantic FPN on ADE20K. Nothing was published for it.
# The drop path is ours.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:tic_tiny}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.1))
