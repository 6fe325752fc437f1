# LSNet in UperNet on ADE20K. Nothing was published for it (but for Semantic FPN).
# Its maps have strides 8 to 64.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:lsnet_t}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
