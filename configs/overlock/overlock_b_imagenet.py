# OverLoCK-B on ImageNet-1k: published top-1 85.1.
_base_ = "overlock_xt_imagenet.py"

model = dict(backbone=dict(name="overlock_b", drop_path_rate=0.5))
