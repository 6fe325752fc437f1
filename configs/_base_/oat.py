# How the authors train OAT: batches of 20, Adam at 1e-4, up to 500 epochs, stopped when the behavior of the validation
# has not come nearer for 30.
_base_ = ["./default_runtime.py"]

model = dict(type="OAT", max_length=64)  # most looks of a path; the authors take the longest of their training
train_dataloader = dict(
    batch_size=20, num_workers=2, persistent_workers=True, sampler=dict(type="EpochSampler", shuffle=True)
)
val_dataloader = test_dataloader = dict(
    batch_size=20, num_workers=2, persistent_workers=True, sampler=dict(type="DefaultSampler", shuffle=False)
)
val_evaluator = test_evaluator = dict(type="ScanpathMetrics")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-4), clip_grad=dict(max_norm=1.0))
train_cfg = dict(by_epoch=True, max_epochs=500, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(save_best="gaze/delta", rule="less"))
custom_hooks = [
    # the delta is infinite as long as a network does what nobody does, which ends no training
    dict(type="EarlyStoppingHook", monitor="gaze/delta", rule="less", patience=30, min_delta=0.0, check_finite=False)
]
randomness = dict(seed=1234)
