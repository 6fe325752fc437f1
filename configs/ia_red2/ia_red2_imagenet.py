# IA-RED2 on ImageNet-1k, one turn of its training: an interpreter learns by rewards (PART=interpreter), or the blocks
# of its group learn on the tokens that are left (PART=blocks), group after group. Of the schedule no more than this
# order was published; the rewards are options of the network, the epochs (10 and 20) and the rates are ours. The first
# turn begins from a DeiT's weights, each other from the turn before:
#   PRETRAINED=deit_small_patch16_224-cd65a155.pth python tools/train.py configs/ia_red2/ia_red2_imagenet.py
#   PART=blocks GROUP=0 python tools/train.py configs/ia_red2/ia_red2_imagenet.py --cfg-options load_from=LAST.pth
#   PART=interpreter GROUP=1 ...
# Trains ia_red2_deit_small unless told otherwise: --cfg-options name=ia_red2_deit_tiny
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:ia_red2_deit_small}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
part, group = "{{$PART:interpreter}}", int("{{$GROUP:0}}")
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="NamedBackbone",
        name=name,
        num_classes=1000,
        pretrained=pretrained,
        drop_path_rate=variant.drop_path,
        learns=(part, group),
    ),
)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-3 if part == "interpreter" else 2e-5, weight_decay=0.05))
epochs = 10 if part == "interpreter" else 20
param_scheduler = [dict(type="CosineAnnealingLR", T_max=epochs, eta_min=1e-6, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=5)
auto_scale_lr = dict(base_batch_size=1024)
del variant
