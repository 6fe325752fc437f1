# RAVLT-L on ImageNet-1k.
_base_ = "ravlt_t_imagenet.py"

model = dict(backbone=dict(name="ravlt_l", drop_path_rate=0.55))
