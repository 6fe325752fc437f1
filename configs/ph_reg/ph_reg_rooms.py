# What the maps of ph_reg_furniture_views.py say about the built-in rooms, by a linear probe: the network is frozen, a
# batch norm and one linear layer learn, in minutes on a CPU. With registers, and before:
#   python tools/train.py configs/ph_reg/ph_reg_rooms.py
#   WEIGHTS=work_dirs/vit_furniture_views/epoch_20.pth REGISTERS=0 python tools/train.py configs/ph_reg/ph_reg_rooms.py
_base_ = ["../_base_/rooms_segmentation.py"]

weights = "{{$WEIGHTS:work_dirs/ph_reg_furniture_views/epoch_2.pth}}"
registers = int("{{$REGISTERS:8}}")
work_dir = f"work_dirs/ph_reg_rooms_{registers}"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=8,
    ),
    backbone=dict(
        type="attlas.PHReg",
        dim=64,
        depth=6,
        heads=4,
        registers=registers,
        patch_size=8,
        img_size=64,
        out_indices=(5,),
        frozen_stages=6,
        init_cfg=dict(type="Pretrained", checkpoint=weights, prefix="backbone."),
    ),
    decode_head=dict(type="attlas.LinearProbe", in_channels="auto", num_classes="auto"),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
