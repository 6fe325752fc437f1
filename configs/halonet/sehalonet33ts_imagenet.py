# SE-HaloNet-33-TS on ImageNet-1k at 256 pixels: timm's weights have top-1 80.99.
_base_ = "halonet26t_imagenet.py"

model = dict(backbone=dict(name="sehalonet33ts"))
