# NAT-Tiny on ImageNet-1k: published top-1 83.2.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="nat_tiny"))
