# CrossViT in RetinaNet on COCO. The dense form, and so its place here, is ours.
# The small patches give the map of stride 8, the large ones that of stride 16; the neck makes the others.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:crossvit_tiny}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(out_indices=None, drop_path_rate=0.1))
