# A small BiFormer in Semantic FPN on the built-in rooms: minutes on a CPU.
# It begins with what configs/biformer/biformer_furniture_views.py has learned: furniture seen alone. From scratch:
# --cfg-options pretrained=None.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/rooms_segmentation.py"]

name = "{{$BACKBONE:biformer_tiny}}"  # which the base asks for; the network below is a smaller one
learned = "{{ fileDirname }}/../biformer/biformer_furniture_views.safetensors"
pretrained = {"None": None, "auto": learned}.get("{{$PRETRAINED:auto}}", "{{$PRETRAINED:auto}}")
model = dict(
    backbone=dict(
        _delete_=True,
        type="attlas.BiFormer",
        dims=(32, 64, 128, 192),
        depths=(1, 1, 2, 1),
        topks=(1, 2, 4, -2),
        regions=4,
        out_indices=(0, 1, 2, 3),
        init_cfg=pretrained and dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    neck=dict(out_channels=64),
    decode_head=dict(channels=64),
)
