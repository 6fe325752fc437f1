# InLine on ImageNet-1k, as the authors: AdamW at 5e-4 for 512 images, 8 GPUs with 128 images each, mixed precision
# (tools/train.py --amp). Published top-1: inline_deit_t 74.5, inline_deit_s 80.2, inline_deit_b 82.3; inline_pvt_t
# 78.2, inline_pvt_s 82.0, inline_pvt_m 83.2, inline_pvt_l 83.6; inline_swin_t 82.4, inline_swin_s 83.6, inline_swin_b
# 84.1; inline_cswin_t 83.2, inline_cswin_s 83.8, inline_cswin_b 84.5 (the averaged weights; their decay here is ours).
# Trains inline_pvt_t unless told otherwise:
#   python tools/train.py configs/inline/inline_imagenet.py --cfg-options name=inline_swin_t
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:inline_pvt_t}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
size = variant.size
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.val_dataloader.dataset.transforms
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
train_dataloader = dict(dataset=dict(transforms=transforms))

host = name.split("_")[1]
warmup = 5 if host == "pvt" else 20
cooldown = 10 if host in ("pvt", "cswin") else 0  # epochs at the smallest learning rate
longest_gradient = dict(inline_pvt_t=None, inline_pvt_s=None, inline_pvt_m=1.0, inline_pvt_l=1.0).get(name, 5.0)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.1 if name == "inline_cswin_b" else 0.05),
    clip_grad=None if host == "cswin" or longest_gradient is None else dict(max_norm=longest_gradient),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=warmup, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=warmup,
        end=300,
        T_max=300 - warmup,
        eta_min=1e-5 if cooldown else 5e-6,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300 + cooldown, val_interval=10)
custom_hooks = [dict(type="EMAHook", momentum=1e-4, update_buffers=True)] if host == "cswin" else []
auto_scale_lr = dict(base_batch_size=1024)
del variant
