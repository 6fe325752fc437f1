# BiFormer in UperNet on Cityscapes. Nothing was published for it; the recipe is that for ADE20K.
_base_ = ["../_base_/upernet.py", "../_base_/cityscapes_160k.py"]

name = "{{$BACKBONE:biformer_small}}"
work_dir = f"work_dirs/upernet_{name}_cityscapes"
model = dict(backbone=dict(regions=8, drop_path_rate=0.3))
