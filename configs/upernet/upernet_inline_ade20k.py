# InLine-Swin, -PVT or -CSwin in UperNet on ADE20K. Published mIoU: inline_swin_t 45.6 (45.57).
# The drop path is ours.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:inline_swin_t}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.2))
