# TransNeXt-Micro with aggregated attention in all stages, at 256 pixels: published top-1 82.6.
_base_ = "transnext_micro_imagenet.py"

model = dict(backbone=dict(name="transnext_micro_aaaa"))
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size = views[1].size = 256
views[0].size = 292  # the crop is 0.875 of it
train_dataloader = dict(dataset=dict(transforms=transforms))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
