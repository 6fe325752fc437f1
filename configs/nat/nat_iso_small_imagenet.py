# NAT-Iso-Small on ImageNet-1k: published top-1 80.0.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="nat_iso_small", drop_path_rate=0.1))
