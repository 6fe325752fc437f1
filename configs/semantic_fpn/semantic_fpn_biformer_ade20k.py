# BiFormer in Semantic FPN on ADE20K. Published mIoU: biformer_small 48.9, biformer_base 49.9.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:biformer_small}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(regions=8, drop_path_rate=0.15))
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=80_000, T_max=80_000, eta_min=0.0)]
