# NAT and DiNAT in UperNet on ADE20K. Published mIoU, of one scale / several:
# nat_mini 45.1 / 46.4, nat_tiny 47.1 / 48.4, nat_small 48.0 / 49.5, nat_base 48.5 / 49.7; dinat_mini 45.8 / 47.2,
# dinat_tiny 47.8 / 48.8, dinat_small 48.9 / 49.9, dinat_base 49.6 / 50.4, dinat_large 54.0 / 54.9.
# The drop path is ours.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:nat_mini}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.2))
