# BiFormer-STL on ImageNet-1k: published top-1 82.7.
_base_ = "biformer_tiny_imagenet.py"

model = dict(backbone=dict(name="biformer_stl"))
