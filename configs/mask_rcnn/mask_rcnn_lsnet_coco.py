# LSNet in Mask R-CNN on COCO. Published AP of boxes / masks: lsnet_t 35.0 / 32.7,
# lsnet_s 37.4 / 34.8, lsnet_b 40.8 / 37.8.
_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_masks_1x.py"]

name = "{{$BACKBONE:lsnet_t}}"
work_dir = f"work_dirs/mask_rcnn_{name}_coco"
model = dict(
    neck=dict(
        _delete_=True,
        type="attlas.UpsampledFPN",
        in_channels="auto",
        out_channels=256,
        num_outs=5,
        upsample=1,
        kernel=3,
    )
)
