# SpaRTAN in UperNet on ADE20K. Nothing was published for it.
# No weights to begin with are published for spartan_t: give a file, or None, as pretrained.
# The drop path is that of its classifier.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:spartan_t}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.1))
