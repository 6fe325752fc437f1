# DiNAT-Small on ImageNet-1k: published top-1 83.8.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="dinat_small", drop_path_rate=0.3))
