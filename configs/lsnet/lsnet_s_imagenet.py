# LSNet-S on ImageNet-1k: published top-1 77.8.
_base_ = "lsnet_t_imagenet.py"

model = dict(backbone=dict(name="lsnet_s"))
