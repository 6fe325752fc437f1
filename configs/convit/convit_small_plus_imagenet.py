# ConViT-S+ on ImageNet-1k: published top-1 82.2.
_base_ = "convit_tiny_imagenet.py"

model = dict(backbone=dict(name="convit_small_plus"))
