# TransNeXt in Relation-DETR on COCO. Nothing was published for it; box AP of DINO with the same maps and 12 epochs:
# transnext_tiny 55.1. The drop path is of that.
_base_ = ["../_base_/relation_detr_backbone.py", "../_base_/coco_detr_1x.py"]

name = "{{$BACKBONE:transnext_tiny}}"
work_dir = f"work_dirs/relation_detr_{name}_coco"
model = dict(backbone=dict(img_size=800, drop_path_rate=0.3))
