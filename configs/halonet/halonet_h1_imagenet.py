# HaloNet-H1 on ImageNet-1k at 256 pixels: published top-1 79.9. The paper's recipe was not at hand; this is timm's.
_base_ = "halonet26t_imagenet.py"

model = dict(backbone=dict(name="halonet_h1"))
