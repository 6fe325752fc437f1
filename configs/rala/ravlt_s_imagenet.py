# RAVLT-S on ImageNet-1k: published top-1 84.4.
_base_ = "ravlt_t_imagenet.py"

model = dict(backbone=dict(name="ravlt_s", drop_path_rate=0.15))
