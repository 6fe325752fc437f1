# What every training and test of a restorer starts from. Trainings count iterations, as papers on restoration do. What
# is validated and saved is the exponential average of the weights, of which every step keeps 0.999.
_base_ = ["./default_runtime.py"]

default_hooks = dict(
    logger=dict(interval=100, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=5000),
)
custom_hooks = [dict(type="EMAHook", momentum=0.001)]
log_processor = dict(window_size=100, by_epoch=False)
train_cfg = dict(type="IterBasedTrainLoop", val_interval=5000)
val_cfg = dict()
test_cfg = dict()
# Y from 16 to 235, without a border of `scale` pixels, the mean of the pictures: each metric prints what it is
val_evaluator = test_evaluator = [dict(type="ImagePSNR"), dict(type="ImageSSIM")]
