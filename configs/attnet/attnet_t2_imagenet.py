# AttNet-T2 on ImageNet-1k: published top-1 84.4.
_base_ = "attnet_t1_imagenet.py"

model = dict(backbone=dict(name="attnet_t2", drop_path_rate=0.2))
