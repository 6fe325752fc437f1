# AttNet-XS on ImageNet-1k.
_base_ = "attnet_s_imagenet.py"

model = dict(backbone=dict(name="attnet_xs"))
