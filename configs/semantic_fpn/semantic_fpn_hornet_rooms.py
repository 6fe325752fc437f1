# A small HorNet in Semantic FPN on the built-in rooms: minutes on a CPU.
# To begin with furniture seen alone: train configs/hornet/hornet_furniture_views.py, and
# --cfg-options pretrained=FILE.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/rooms_segmentation.py"]

name = "{{$BACKBONE:hornet_tiny_7x7}}"  # which the base asks for; the network below is a smaller one
pretrained = {"None": None, "auto": None}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
model = dict(
    backbone=dict(
        _delete_=True,
        type="attlas.HorNet",
        dims=(48, 96, 192, 288),
        depths=(1, 1, 2, 1),
        layer_scale=1.0,
        out_indices=(0, 1, 2, 3),
        init_cfg=pretrained and dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(out_channels=64),
    decode_head=dict(channels=64),
)
