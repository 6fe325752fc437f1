# RAVLT in Semantic FPN on ADE20K. Published mIoU: ravlt_t 47.9, ravlt_s 49.5, ravlt_b 51.9, ravlt_l 52.6.
# The drop path is ours.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:ravlt_t}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(norm_eval=True, drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
