# Balanced multi-task attention in Semantic FPN on ADE20K. Nothing was published for it.
# The stem has the stride of 4 that large pictures ask for, and DropBlock is off.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:balanced_mta_12}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(strides=(4, 8, 16, 32), drop_block=0.0))
