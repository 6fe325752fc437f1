# TransNeXt-Base on ImageNet-1k: published top-1 84.8.
_base_ = "transnext_micro_imagenet.py"

model = dict(backbone=dict(name="transnext_base", drop_path_rate=0.6))
