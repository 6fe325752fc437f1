# ConViT on ImageNet-1k after DeiT's recipe, as the paper: 8 GPUs with 128 images each. Published top-1: convit_tiny
# 73.1, convit_tiny_plus 76.7, convit_small 81.3, convit_small_plus 82.2, convit_base 82.4, convit_base_plus 82.5.
# Trains convit_tiny unless told otherwise:
#   python tools/train.py configs/convit/convit_imagenet.py --cfg-options name=convit_small
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:convit_tiny}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
train_dataloader = dict(sampler=dict(_delete_=True, type="RepeatedAugmentSampler", repeats=3))
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),  # 5e-4 for 512 images
)
auto_scale_lr = dict(base_batch_size=1024)
del variant
