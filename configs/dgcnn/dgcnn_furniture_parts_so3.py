# As dgcnn_furniture_parts.py, but trained under all rotations.
_base_ = "dgcnn_furniture_parts.py"

transforms = _base_.train_dataloader.dataset.transforms
transforms[1].group = "SO3"
train_dataloader = dict(dataset=dict(transforms=transforms))
