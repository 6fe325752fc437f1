# As risurconv_furniture_parts.py, but trained under all rotations. The network cannot tell the difference.
_base_ = "risurconv_furniture_parts.py"

transforms = _base_.train_dataloader.dataset.transforms
transforms[1].group = "SO3"
train_dataloader = dict(dataset=dict(transforms=transforms))
