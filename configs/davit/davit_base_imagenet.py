# DaViT-Base on ImageNet-1k: published top-1 84.6.
_base_ = "davit_tiny_imagenet.py"

model = dict(backbone=dict(name="davit_base"))
