# A small BiFormer in RetinaNet on the built-in rooms: minutes on a CPU.
_base_ = ["../_base_/retinanet.py", "../_base_/rooms_biformer.py"]

name = "{{$BACKBONE:biformer_tiny}}"  # which the base asks for; the network below is a smaller one
pretrained = {"None": None, "auto": _base_.learned}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
model = dict(
    data_preprocessor=_base_.preprocessor,
    backbone=dict(
        _delete_=True,
        **_base_.backbone,
        out_indices=(1, 2, 3),
        norm_eval=bool(pretrained),
        init_cfg=pretrained and dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(out_channels=64, num_outs=4),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        num_classes=14,
        anchor_generator=dict(strides=[8, 16, 32, 64]),
    ),
)
