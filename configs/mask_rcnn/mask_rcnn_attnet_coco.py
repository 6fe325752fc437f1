# AttNet in Mask R-CNN on COCO. Nothing was published for it.
# The drop path is ours.
_base_ = "../_base_/mask_rcnn.py"

name = "{{$BACKBONE:attnet_t2}}"
model = dict(backbone=dict(drop_path_rate=0.1))
