# Relation-DETR with ResNet-50 on COCO, 24 epochs ("2x"). Published: AP 52.1, AP50 69.7. The epoch of the step was not
# released: it is DINO's.
_base_ = ["./relation_detr_r50_coco.py"]

work_dir = "work_dirs/relation_detr_r50_2x_coco"
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, milestones=[20], gamma=0.1),
]
train_cfg = dict(max_epochs=24)
