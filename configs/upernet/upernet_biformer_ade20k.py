# BiFormer in UperNet on ADE20K. Published mIoU, of one scale / several:
# biformer_small 49.8 / 50.8, biformer_base 51.0 / 51.7.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:biformer_small}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(regions=8, drop_path_rate=0.3))
