# HaloNet-H3 on ImageNet-1k at 320 pixels: published top-1 81.9. The recipe is timm's, for want of the paper's.
_base_ = "halonet26t_imagenet.py"

model = dict(backbone=dict(name="halonet_h3"))
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size = views[1].size = 320
views[0].size = 337  # the crop is 0.95 of it
train_dataloader = dict(dataset=dict(transforms=transforms))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
