# RAVLT on ImageNet-1k after DeiT's recipe without its repeats, as the authors: 8 GPUs with 128 images each. Published
# top-1: ravlt_s 84.4 (ravlt_t, ravlt_b and ravlt_l without a figure). The drop path of ravlt_t is 0.1 in their table
# and 0.05 in their script.
# Trains ravlt_t unless told otherwise:
#   python tools/train.py configs/rala/rala_imagenet.py --cfg-options name=ravlt_s
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:ravlt_t}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),  # 5e-4 for 512 images
)
auto_scale_lr = dict(base_batch_size=1024)
del variant
