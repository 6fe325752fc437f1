# AFFNet in Semantic FPN on ADE20K. Published for DeepLabv3 alone.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:affnet}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3))  # as its weights are trained
