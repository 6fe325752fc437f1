# HaloNet-H6 on ImageNet-1k at 512 pixels: published top-1 84.4. The recipe is timm's, for want of the paper's.
_base_ = "halonet26t_imagenet.py"

model = dict(backbone=dict(name="halonet_h6"))
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size = views[1].size = 512
views[0].size = 539  # the crop is 0.95 of it
train_dataloader = dict(dataset=dict(transforms=transforms))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
