# 12 epochs of COCO with 16 images a step, as most papers count: "1x".
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(type="OptimWrapper")
auto_scale_lr = dict(base_batch_size=16)
