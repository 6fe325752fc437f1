# Relation-DETR with ResNet-50 on COCO, 12 epochs, as the authors: 10 images a step. Published: AP 51.7, AP50 69.1.
#   python tools/train.py configs/relation_detr/relation_detr_r50_coco.py
# The backbone starts from torchvision's second ImageNet weights; a file of torchvision or timm may stand there, too.
# The authors' checkpoint of 91 classes loads into COCO's 80: load_from = "relation_detr_resnet50_800_1333_coco_1x.pth".
# For other classes, beside load_from: ignore_mismatched = [r"cls_branches", r"label_embedding"].
_base_ = ["../_base_/relation_detr.py", "../_base_/coco_detr_1x.py"]

work_dir = "work_dirs/relation_detr_r50_coco"
model = dict(
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="attlas.FrozenBatchNorm2d"),
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="https://download.pytorch.org/models/resnet50-11ad3fa6.pth"),
    ),
    neck=dict(in_channels=[512, 1024, 2048]),
)
