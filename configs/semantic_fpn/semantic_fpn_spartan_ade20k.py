# SpaRTAN in Semantic FPN on ADE20K. Nothing was published for it.
# No weights to begin with are published for spartan_t: give a file, or None, as pretrained.
# The drop path is that of its classifier.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:spartan_t}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.1))
