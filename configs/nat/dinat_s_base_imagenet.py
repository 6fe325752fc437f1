# DiNAT_s-Base on ImageNet-1k: published top-1 83.8.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="dinat_s_base", drop_path_rate=0.5))
