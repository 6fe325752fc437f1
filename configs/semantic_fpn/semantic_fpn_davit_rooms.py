# A small DaViT in Semantic FPN on the built-in rooms: minutes on a CPU.
# To begin with furniture seen alone: train configs/davit/davit_furniture_views.py, and
# --cfg-options pretrained=FILE.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/rooms_segmentation.py"]

name = "{{$BACKBONE:davit_tiny}}"  # which the base asks for; the network below is a smaller one
pretrained = {"None": None, "auto": None}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
model = dict(
    backbone=dict(
        _delete_=True,
        type="attlas.DaViT",
        dims=(32, 64, 128, 192),
        depths=(1, 1, 1, 1),
        heads=(1, 2, 4, 6),
        window=4,
        out_indices=(0, 1, 2, 3),
        init_cfg=pretrained and dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(out_channels=64),
    decode_head=dict(channels=64),
)
