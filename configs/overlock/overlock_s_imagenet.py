# OverLoCK-S on ImageNet-1k: published top-1 84.8.
_base_ = "overlock_xt_imagenet.py"

model = dict(backbone=dict(name="overlock_s", drop_path_rate=0.4))
