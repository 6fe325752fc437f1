# BiFormer in Mask2Former on ADE20K. Nothing was published for it. The drop path is that of its UperNet.
_base_ = ["../_base_/mask2former.py", "../_base_/ade20k_mask2former_160k.py"]

name = "{{$BACKBONE:biformer_small}}"
work_dir = f"work_dirs/mask2former_{name}_ade20k"
model = dict(backbone=dict(regions=8, drop_path_rate=0.3))
