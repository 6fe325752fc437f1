# HaloNet-H2 on ImageNet-1k at 256 pixels: published top-1 80.4. The paper's recipe was not at hand; this is timm's.
_base_ = "halonet26t_imagenet.py"

model = dict(backbone=dict(name="halonet_h2"))
