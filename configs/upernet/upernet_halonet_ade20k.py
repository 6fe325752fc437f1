# HaloNet in UperNet on ADE20K. Nothing was published for it.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:halonet50ts}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
