# OverLoCK-T on ImageNet-1k: published top-1 84.2.
_base_ = "overlock_xt_imagenet.py"

model = dict(backbone=dict(name="overlock_t", drop_path_rate=0.15))
