# ConvTTrans with LI-ConvLSTM as its authors train it: clips of 9 frames, every third of 25, of which the middle three
# are predicted, one clip a step. A tenth of the training clips validates: the rate is halved when its loss does not
# fall for 2 epochs, and the training ends when it does not for 10. The data set is each config's.
_base_ = ["./video_runtime.py"]

grey = False
length, step = 9, 3
transforms = [dict(type="PackClip", size=(256, 256), grey=grey)]
model = dict(
    type="VideoAnomalyDetector",
    network=dict(type="ConvTemporalVAD", in_channels=1 if grey else 3, context=3),
    length=length,
    step=step,
    error="psnr",
)
_data = dict(length=length, step=step, val_share=0.1, transforms=transforms)
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    dataset=dict(split="train", **_data),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="val", **_data),
)
test_dataloader = dict(  # whole videos, which the model reads frame by frame
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="test", **_data),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-3, betas=(0.9, 0.98), eps=1e-9))
param_scheduler = [dict(type="ReduceOnPlateauLR", monitor="loss", rule="less", factor=0.5, patience=2)]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=20, val_interval=1)
val_evaluator = dict(type="ClipLoss")
custom_hooks = [
    dict(type="NormalScores", clips=200),
    dict(type="EarlyStoppingHook", monitor="loss", rule="less", patience=10, min_delta=0.0),
]
default_hooks = dict(checkpoint=dict(save_best="loss", rule="less"))
