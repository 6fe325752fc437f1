# TransNeXt in RetinaNet on COCO. Published for Mask R-CNN and DINO alone.
_base_ = ["../_base_/retinanet.py", "../_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:transnext_tiny}}"
work_dir = f"work_dirs/retinanet_{name}_coco"
model = dict(backbone=dict(img_size=800, drop_path_rate=0.4))
