# DiNAT_s-Tiny on ImageNet-1k: published top-1 81.8.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="dinat_s_tiny"))
