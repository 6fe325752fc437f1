# A small BiFormer in RetinaNet on the built-in rooms: minutes on a CPU. The backbone is that of
# configs/biformer/biformer_furniture_views.py; to begin with what that learned:
#   python tools/train.py configs/retinanet/retinanet_biformer_rooms.py --cfg-options \
#       pretrained=work_dirs/biformer_furniture_views/epoch_20.pth
_base_ = ["../_base_/retinanet.py", "../_base_/furnished_rooms.py", "../_base_/detection_runtime.py"]

name = "{{$BACKBONE:biformer_tiny}}"  # which the base asks for; the network below is a smaller one
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        _delete_=True,
        type="attlas.BiFormer",
        dims=(32, 64, 128, 192),
        depths=(1, 1, 2, 1),
        topks=(1, 2, 4, -2),
        regions=4,
        out_indices=(0, 1, 2, 3),
        norm_eval=bool(pretrained),
        init_cfg=pretrained and dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(out_channels=64, start_level=1, num_outs=4),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        num_classes=14,
        anchor_generator=dict(strides=[8, 16, 32, 64]),
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="attlas.LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", begin=0, end=12, T_max=12, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=12)
