# AttNet-T3 on ImageNet-1k.
_base_ = "attnet_t1_imagenet.py"

model = dict(backbone=dict(name="attnet_t3", drop_path_rate=0.4))
