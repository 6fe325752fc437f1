# S2AFormer in Semantic FPN on ADE20K. The authors' sizes and figures were out of reach; the variants are ours.
# Learning rate and drop path are ours.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:s2aformer_tiny}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
