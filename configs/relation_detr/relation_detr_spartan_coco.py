# SpaRTAN in Relation-DETR on COCO: of the detectors here the nearest to RT-DETR, for which it was published (see
# retinanet_spartan_coco.py). No weights to begin with are published for spartan_t: give a file, or None, as pretrained.
# The drop path is that of its classifier.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:spartan_t}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
