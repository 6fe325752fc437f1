# TransNeXt-Small of 224 pixels fine-tuned at 384, five epochs at a constant learning rate: published top-1 86.0.
_base_ = "transnext_small_imagenet.py"

model = dict(backbone=dict(name="transnext_small_img384"), cutmix=0.0)
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size = views[1].size = 384
views[0].size = 438  # the crop is 0.875 of it
train_dataloader = dict(dataset=dict(transforms=transforms))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [dict(type="ConstantLR", factor=1.0, begin=0, end=5)]
train_cfg = dict(max_epochs=5, val_interval=1)
load_from = "transnext_small_224_1k.pth"
