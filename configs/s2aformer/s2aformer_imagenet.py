# S2AFormer on ImageNet-1k. The authors' recipe, sizes and figures were out of reach: the recipe is DeiT's without its
# repeats, 8 GPUs with 128 images each; the variants and their drop paths are ours.
# Trains s2aformer_tiny unless told otherwise:
#   python tools/train.py configs/s2aformer/s2aformer_imagenet.py --cfg-options name=s2aformer_small
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py", "../_base_/schedule_imagenet.py"]

name = "{{$BACKBONE:s2aformer_tiny}}"
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
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
)
auto_scale_lr = dict(base_batch_size=1024)
del variant
