# AttNet-XXS on ImageNet-1k.
_base_ = "attnet_s_imagenet.py"

model = dict(backbone=dict(name="attnet_xxs"))
optim_wrapper = dict(optimizer=dict(weight_decay=0.015))
