# OverLoCK in UperNet on ADE20K. Published mIoU: overlock_t 50.3, overlock_s 51.3 (drop path 0.3),
# overlock_b 51.7 (0.5).
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:overlock_t}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.2))
