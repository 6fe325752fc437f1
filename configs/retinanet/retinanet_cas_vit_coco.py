# CAS-ViT in RetinaNet on COCO. Published box AP: cas_vit_xs 36.5, cas_vit_s 38.6, cas_vit_m 40.9, cas_vit_t 41.9.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:cas_vit_xs}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(drop_path_rate=dict(cas_vit_m=0.1, cas_vit_t=0.1).get(name, 0.0)))
