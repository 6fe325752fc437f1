# BiFormer-S on ImageNet-1k: published top-1 83.8.
_base_ = "biformer_tiny_imagenet.py"

model = dict(backbone=dict(name="biformer_small"))
