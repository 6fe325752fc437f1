# ConViT-Ti+ on ImageNet-1k: published top-1 76.7.
_base_ = "convit_tiny_imagenet.py"

model = dict(backbone=dict(name="convit_tiny_plus"))
