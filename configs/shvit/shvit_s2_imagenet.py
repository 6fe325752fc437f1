# SHViT-S2 on ImageNet-1k: published top-1 75.2.
_base_ = "shvit_s1_imagenet.py"

model = dict(backbone=dict(name="shvit_s2"))
optim_wrapper = dict(optimizer=dict(weight_decay=0.032))
