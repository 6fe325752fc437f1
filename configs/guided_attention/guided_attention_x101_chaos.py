# The authors' DAF_stack on abdominal MR: four organs and background, slices of 256 x 256 with one channel, 8 a step.
#   DATA_ROOT=slices python tools/train.py configs/guided_attention/guided_attention_x101_chaos.py
# The folder has train, val and test, each with Img and GT, and a slice and its mask of one name: Subj_3slice_17.png is
# slice 17 of subject 3. Masks have gray levels 63 * class. attlas.dense.segmentation.volumes.save_slices writes such
# from DICOM and NIfTI. What the authors' training wrote loads: load_from = "Best_MS-Dual-Guided.pth".
_base_ = ["../_base_/default_runtime.py"]

default_scope = "mmseg"
default_hooks = dict(
    checkpoint=dict(type="attlas.CheckpointHook", save_best="Dice/case_mean", rule="greater"),
    sampler_seed=dict(type="attlas.IterationSeedHook"),
    progress=dict(type="attlas.ProgressHook"),
)
visualizer = dict(type="SegLocalVisualizer")
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

meta_keys = ("img_path", "ori_shape", "img_shape", "pad_shape", "flip", "flip_direction", "subject", "slice")
dataset = dict(
    type="attlas.MedicalSlices",
    data_root=data_root,
    classes=("background", "liver", "right kidney", "left kidney", "spleen"),
    pipeline=[dict(type="attlas.ReadSlice"), dict(type="PackSegInputs", meta_keys=meta_keys)],
    test_mode=True,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="attlas.EpochSampler", shuffle=True),
    dataset=dict(
        type="attlas.MedicalSlices",
        data_root=data_root,
        split="train",
        classes=dataset["classes"],
        pipeline=[
            dict(type="attlas.ReadSlice"),
            dict(type="RandomFlip", prob=0.5, direction="vertical"),
            dict(type="RandomFlip", prob=0.5, direction="horizontal"),
            dict(type="RandomRotate", prob=0.5, degree=30, pad_val=0, seg_pad_val=0),  # background comes in
            dict(type="PackSegInputs", meta_keys=meta_keys),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,  # slices differ in size
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="val", **dataset),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="test", **dataset),
)
val_evaluator = test_evaluator = dict(type="attlas.VolumeDice", empty="skip")

optim_wrapper = dict(optimizer=dict(type="Adam", lr=1e-3, betas=(0.9, 0.99)))
# The authors halve the rate in every epoch that is a multiple of the best one's number + 50. This is halving after 50
# epochs without a better one, which is the same the first time.
param_scheduler = [
    dict(type="ReduceOnPlateauLR", monitor="Dice/case_mean", rule="greater", factor=0.5, patience=49, by_epoch=True)
]
train_cfg = dict(by_epoch=True, max_epochs=500, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
