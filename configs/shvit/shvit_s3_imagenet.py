# SHViT-S3 on ImageNet-1k: published top-1 77.4.
_base_ = "shvit_s1_imagenet.py"

model = dict(backbone=dict(name="shvit_s3"))
optim_wrapper = dict(optimizer=dict(weight_decay=0.035))
