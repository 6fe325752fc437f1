_base_ = ["../../configs/_base_/default_runtime.py"]
custom_imports = dict(imports=["tests.configs.toy"])

batch_size = 4
model = dict(type="ToyClassifier")
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="ToyPoints", length=19),
)
train_cfg = dict(by_epoch=True, max_epochs=4)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.01))
param_scheduler = dict(type="OneCycleLR", eta_max=0.02, total_steps=20, by_epoch=False)

val_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ToyPoints", length=7),
)
val_cfg = dict()
val_evaluator = dict(type="ToyCount")
test_dataloader = val_dataloader
test_cfg = dict()
test_evaluator = val_evaluator

custom_hooks = [dict(type="RecordLosses", path="losses")]
default_hooks = dict(logger=dict(interval=2), checkpoint=dict(save_best="acc"))
