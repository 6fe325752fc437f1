# BiFormer-B on ImageNet-1k: published top-1 84.3.
_base_ = "biformer_tiny_imagenet.py"

model = dict(backbone=dict(name="biformer_base"))
