# S2AFormer in UperNet on ADE20K. The authors' sizes and figures were out of reach; the variants are ours.
# The drop path is ours.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:s2aformer_tiny}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.1))
