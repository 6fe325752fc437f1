# InLine-PVT, -Swin or -CSwin in Semantic FPN on ADE20K. Published mIoU: inline_pvt_t 39.2 (39.16).
# The drop path is ours.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:inline_pvt_t}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
