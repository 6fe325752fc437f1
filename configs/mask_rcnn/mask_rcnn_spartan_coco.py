# SpaRTAN in Mask R-CNN on COCO. Published for RT-DETR alone (see retinanet_spartan_coco.py).
# No weights to begin with are published for spartan_t: give a file, or None, as pretrained.
# The drop path is that of its classifier.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:spartan_t}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(backbone=dict(drop_path_rate=0.1))
