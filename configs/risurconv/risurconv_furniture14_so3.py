# As risurconv_furniture14.py, but trained under all rotations. The network cannot tell the difference.
_base_ = "risurconv_furniture14.py"

transforms = _base_.train_dataloader.dataset.transforms
transforms[1].group = "SO3"
train_dataloader = dict(dataset=dict(transforms=transforms))
