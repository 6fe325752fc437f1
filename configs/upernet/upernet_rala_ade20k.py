# RAVLT in UperNet on ADE20K. Published mIoU: ravlt_s 50.7, ravlt_b 52.5, ravlt_l 53.2.
# The drop path is ours.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:ravlt_t}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(norm_eval=True, drop_path_rate=0.1))
