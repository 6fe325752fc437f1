# NAT-Base on ImageNet-1k: published top-1 84.3.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="nat_base", drop_path_rate=0.5))
