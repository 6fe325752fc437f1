# CAS-ViT in Semantic FPN on ADE20K. Published mIoU: cas_vit_xs 37.1, cas_vit_s 41.3, cas_vit_m 43.6, cas_vit_t 45.0.
# The learning rate is that of 16 images; the authors took 40,000 steps of 32 images with 2e-4.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:cas_vit_xs}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(backbone=dict(norm_eval=True, drop_path_rate=dict(cas_vit_m=0.1, cas_vit_t=0.1).get(name, 0.0)))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
