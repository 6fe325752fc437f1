# DiNAT-Tiny on ImageNet-1k: published top-1 82.7.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="dinat_tiny"))
