# DuoFormer on ImageNet-1k by the recipe that its authors have for small pictures: Adam with one cycle of the learning
# rate, 5e-5 at its height, for 50 epochs. They published nothing on ImageNet. Batches are theirs, 64 images for 3
# scales and 16 for 4. Trains duoformer_resnet50_3 unless told otherwise:
#   python tools/train.py configs/duoformer/duoformer_imagenet.py --cfg-options name=duoformer_resnet18_4
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/imagenet.py"]

name = "{{$BACKBONE:duoformer_resnet50_3}}"
work_dir = f"work_dirs/{name}_imagenet"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=1000, drop_path_rate=variant.drop_path),
)
train_dataloader = dict(batch_size={3: 64, 4: 16}[variant.options["scales"]])
optim_wrapper = dict(optimizer=dict(type="Adam", lr=5e-5, weight_decay=1e-4))
param_scheduler = [dict(type="OneCycleLR", eta_max=5e-5, total_steps=50, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=50, val_interval=5)
del variant
