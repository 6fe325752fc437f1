# TransNeXt in RetinaNet on COCO. Published for Mask R-CNN and DINO alone.
_base_ = "../_base_/retinanet.py"

name = "{{$BACKBONE:transnext_tiny}}"
model = dict(backbone=dict(img_size=800, drop_path_rate=0.4))
