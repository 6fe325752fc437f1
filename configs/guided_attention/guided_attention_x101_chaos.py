# The authors' DAF_stack on abdominal MR: four organs and background, slices of 256 x 256 with one channel, 8 a step.
#   DATA_ROOT=slices python tools/train.py configs/guided_attention/guided_attention_x101_chaos.py
# The folder has train, val and test, each with Img and GT: PNG slices of one name, Subj_3slice_17.png is slice 17 of
# subject 3, and masks of gray levels 63 * class. What the authors' training wrote loads: load_from = "Best_MS-Dual-Guided.pth".
_base_ = ["../_base_/default_runtime.py"]

default_scope = "mmseg"
work_dir = "work_dirs/guided_attention_x101_chaos"
data_root = "{{$DATA_ROOT:data/chaos_slices}}"
norm_cfg = dict(type="BN")

model = dict(
    type="attlas.DAFStack",
    # gray levels to [0, 1]; other sizes are padded, and predictions cropped
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[0.0], std=[255.0], size_divisor=32, test_cfg=dict(size_divisor=32)
    ),
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=32,
        base_width=8,
        in_channels=1,
        style="pytorch",
        norm_cfg=norm_cfg,
        norm_eval=False,
        zero_init_residual=False,
        init_cfg=[  # as the head's
            dict(type="Xavier", layer="Conv2d", distribution="normal"),
            dict(type="Normal", layer="_BatchNorm", mean=1.0, std=0.02, bias=0.0),
        ],
    ),
    decode_head=dict(
        type="attlas.GuidedAttentionHead",
        in_channels=[256, 512, 1024, 2048],
        channels=64,
        num_classes=5,
        code_weight=0.25,
        reconstruction_weight=0.1,
        norm_cfg=norm_cfg,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True, loss_weight=1.0),
    ),
    test_cfg=dict(mode="whole"),
)
