# RAVLT-B on ImageNet-1k.
_base_ = "ravlt_t_imagenet.py"

model = dict(backbone=dict(name="ravlt_b", drop_path_rate=0.4))
