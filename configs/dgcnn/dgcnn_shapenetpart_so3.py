# As dgcnn_shapenetpart.py, but trained under all rotations.
_base_ = "dgcnn_shapenetpart.py"

transforms = _base_.train_dataloader.dataset.transforms
transforms[2].group = "SO3"
train_dataloader = dict(dataset=dict(transforms=transforms))
