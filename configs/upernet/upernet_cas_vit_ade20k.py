# CAS-ViT in UperNet on ADE20K. Published for Semantic FPN alone, whose drop path it has.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:cas_vit_xs}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(norm_eval=True, drop_path_rate=dict(cas_vit_m=0.1, cas_vit_t=0.1).get(name, 0.0)))
