# BiFormer on ImageNet-1k after the authors' recipe, 1024 images a step. Published top-1: biformer_tiny 81.4,
# biformer_small 83.8, biformer_base 84.3, biformer_stl and biformer_stl_nchw 82.7. The drop path was published for
# biformer_small and is taken for all.
# Trains biformer_tiny unless told otherwise:
#   python tools/train.py configs/biformer/biformer_imagenet.py --cfg-options name=biformer_small
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:biformer_tiny}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path
    ),  # published for S, taken for all,
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
