# LSNet-B on ImageNet-1k: published top-1 80.3.
_base_ = "lsnet_t_imagenet.py"

model = dict(backbone=dict(name="lsnet_b"))
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
