# RISurConv as released, on the airplanes of FG3D: published class accuracy 91.5 (the order of the three is inferred).
_base_ = "risurconv_fg3d_chair.py"

model = dict(network=dict(num_classes=13))
train_dataloader = dict(dataset=dict(category="Airplane"))
val_dataloader = dict(dataset=dict(category="Airplane"))
test_dataloader = dict(dataset=dict(dataset=dict(category="Airplane")))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-2))
param_scheduler = [dict(type="StepLR", step_size=20, gamma=0.7)]
train_cfg = dict(max_epochs=300)
