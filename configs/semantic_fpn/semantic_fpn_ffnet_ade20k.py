# FFNet in Semantic FPN on ADE20K. Published for UperNet and for its own segmentor alone.
# The drop path is that of its UperNet.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:ffnet_2}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.2))
