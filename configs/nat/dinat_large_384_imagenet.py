# DiNAT-Large of ImageNet-22k fine-tuned on ImageNet-1k at 384 pixels: published top-1 87.4.
_base_ = "dinat_large_imagenet.py"

model = dict(backbone=dict(name="dinat_large_384"))
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size = views[1].size = 384
views[0].size = 438  # the crop is 0.875 of it
train_dataloader = dict(dataset=dict(transforms=transforms))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
