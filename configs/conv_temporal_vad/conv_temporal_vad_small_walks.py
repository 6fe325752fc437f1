# A small ConvTTrans with LI-ConvLSTM on the built-in walks through furnished rooms: minutes on a CPU, from nothing. The
# videos are made first, which takes minutes as well, and kept. Statistics are those of each clip, so that several
# clips make a step, and one is asked at a time as in training.
_base_ = ["../_base_/video_runtime.py"]

length, step = 7, 2
transforms = [dict(type="PackClip", size=(36, 48))]
model = dict(
    type="VideoAnomalyDetector",
    network=dict(
        type="ConvTemporalVAD",
        in_channels=3,
        context=2,
        heads=4,
        layers=1,
        dims=(8, 16, 32),
        kernel=3,
        mix=0.5,
        dropout=0.0,
        statistics="clip",
    ),
    length=length,
    step=step,
    error="psnr",
)
_data = dict(type="RoomWalks", length=length, step=step, transforms=transforms)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="EpochSampler", shuffle=True),
    dataset=dict(split="train", count=24, stride=3, **_data),
)
# there is no third split: validation looks at the test videos, and we report the last checkpoint, not the best
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="test", count=16, **_data),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=2e-3, betas=(0.9, 0.98), eps=1e-9))
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=True, T_max=4, eta_min=1e-5, convert_to_iter_based=True)]
custom_hooks = [dict(type="NormalScores", clips=60)]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=4)
val_evaluator = dict(type="VideoAUC", sigma=3.0)
