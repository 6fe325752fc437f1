# RISurConv as released, on the cars of FG3D: published class accuracy 82.7 (the order of the three is inferred).
_base_ = "risurconv_fg3d_chair.py"

model = dict(network=dict(num_classes=20))
train_dataloader = dict(dataset=dict(category="Car"))
val_dataloader = dict(dataset=dict(category="Car"))
test_dataloader = dict(dataset=dict(dataset=dict(category="Car")))
