# TransNeXt-Tiny on ImageNet-1k: published top-1 84.0.
_base_ = "transnext_micro_imagenet.py"

model = dict(backbone=dict(name="transnext_tiny", drop_path_rate=0.25))
