# HaloNet-50-TS on ImageNet-1k at 256 pixels: timm's weights have top-1 81.70.
_base_ = "halonet26t_imagenet.py"

model = dict(backbone=dict(name="halonet50ts"))
