# HorNet-B with global filters on ImageNet-1k: published top-1 84.3.
_base_ = "hornet_tiny_7x7_imagenet.py"

model = dict(backbone=dict(name="hornet_base_gf", drop_path_rate=0.5))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
