# Prompts for a small plain vision transformer that knows the built-in pictures of furniture as they stand, so that it
# knows them turned by any angle: minutes on a CPU. The transformer is trained first:
#   python tools/train.py configs/vit/vit_furniture_views.py
#   PRETRAINED=work_dirs/vit_furniture_views/epoch_20.pth python tools/train.py configs/tcpa/tcpa_furniture_views.py
# What it is to be compared with: full tuning, plain prompts, the head alone, by --cfg-options
#   model.backbone.frozen=False optim_wrapper.optimizer.lr=1e-3
#   model.backbone.coordination=none
#   model.backbone.class_pool=0 model.backbone.image_pool=0
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

pretrained = "{{$PRETRAINED:work_dirs/vit_furniture_views/epoch_20.pth}}"
model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="TCPA",
        dim=64,
        depth=6,
        heads=4,
        class_pool=8,
        image_pool=8,
        class_topk=4,
        image_topk=4,
        patch_size=8,
        img_size=64,
        num_classes=14,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
)
turn = dict(type="RandomRotate", degrees=180)
train_dataloader = dict(dataset=dict(transforms=[turn, *_base_.train_dataloader.dataset.transforms]))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=[turn, *_base_.val_dataloader.dataset.transforms]))
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=12, T_max=11, eta_min=1e-4, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=4)
custom_hooks = [*_base_.custom_hooks, dict(type="PromptHook", random_epochs=1)]
