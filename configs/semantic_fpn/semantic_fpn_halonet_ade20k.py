# HaloNet in Semantic FPN on ADE20K. Nothing was published for it.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:halonet50ts}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
