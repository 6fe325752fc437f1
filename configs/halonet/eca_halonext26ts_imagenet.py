# ECA-HaloNeXt-26-TS on ImageNet-1k at 256 pixels: timm's weights have top-1 79.50.
_base_ = "halonet26t_imagenet.py"

model = dict(backbone=dict(name="eca_halonext26ts"))
