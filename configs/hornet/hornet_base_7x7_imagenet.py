# HorNet-B with 7x7 convolutions on ImageNet-1k: published top-1 84.2.
_base_ = "hornet_tiny_7x7_imagenet.py"

model = dict(backbone=dict(name="hornet_base_7x7", drop_path_rate=0.5))
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
