# DiNAT-Base on ImageNet-1k: published top-1 84.4.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="dinat_base", drop_path_rate=0.5))
