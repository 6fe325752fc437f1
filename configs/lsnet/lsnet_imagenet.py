# LSNet on ImageNet-1k after the authors' recipe: 8 GPUs with 256 images each. Published top-1: lsnet_t 74.9, lsnet_s
# 77.8, lsnet_b 80.3.
# Trains lsnet_t unless told otherwise:
#   python tools/train.py configs/lsnet/lsnet_imagenet.py --cfg-options name=lsnet_s
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:lsnet_t}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=0.05 if name == "lsnet_b" else 0.025),  # 1e-3 for 512 images
)
custom_hooks = [
    dict(type="AdaptiveClipHook", clip_factor=0.02),
    dict(type="EMAHook", momentum=4e-5, update_buffers=True),
]
auto_scale_lr = dict(base_batch_size=2048)
del variant
