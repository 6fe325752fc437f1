# TransNeXt-Small on ImageNet-1k: published top-1 84.7.
_base_ = "transnext_micro_imagenet.py"

model = dict(backbone=dict(name="transnext_small", drop_path_rate=0.45))
