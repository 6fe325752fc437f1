# HaloRegNetZ-B on ImageNet-1k at 224 pixels: timm's weights have top-1 81.04.
_base_ = "halonet26t_imagenet.py"

model = dict(backbone=dict(name="haloregnetz_b"))
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size = views[1].size = 224
views[0].size = 236  # the crop is 0.95 of it
train_dataloader = dict(dataset=dict(transforms=transforms))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
