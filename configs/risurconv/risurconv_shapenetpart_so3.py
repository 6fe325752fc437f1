# As risurconv_shapenetpart.py, but trained under all rotations. The network cannot tell the difference.
_base_ = "risurconv_shapenetpart.py"

transforms = _base_.train_dataloader.dataset.transforms
transforms[2].group = "SO3"
train_dataloader = dict(dataset=dict(transforms=transforms))
