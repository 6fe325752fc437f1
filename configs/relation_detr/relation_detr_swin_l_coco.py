# Relation-DETR with Swin-L on COCO, 12 epochs, as the authors: 10 images a step. Published: AP 57.8, AP50 76.1.
# The backbone starts from ImageNet-22k (Microsoft's file). The authors' checkpoint loads as it is.
_base_ = ["../_base_/relation_detr.py", "../_base_/coco_detr_1x.py"]

work_dir = "work_dirs/relation_detr_swin_l_coco"
url = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_large_patch4_window7_224_22k.pth"
model = dict(
    backbone=dict(
        type="attlas.DetectionSwin",
        pretrain_img_size=224,
        embed_dims=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=7,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        init_cfg=dict(type="Pretrained", checkpoint=url),
    ),
    neck=dict(in_channels=[384, 768, 1536]),
)
