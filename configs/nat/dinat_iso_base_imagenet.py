# DiNAT-Iso-Base on ImageNet-1k: published top-1 82.1.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="dinat_iso_base", drop_path_rate=0.4))
