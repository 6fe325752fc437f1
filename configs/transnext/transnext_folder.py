# TransNeXt on pictures of your own, a folder for each class:
#   IMAGES=path/to/pictures python tools/train.py configs/transnext/transnext_folder.py
# Trains transnext_micro unless told otherwise: --cfg-options name=transnext_tiny max_epochs=30 pretrained=weights.pth
import importlib

_base_ = ["../_base_/default_runtime.py", "../_base_/image_folder.py"]

name = "{{$BACKBONE:transnext_micro}}"
work_dir = f"work_dirs/{name}_folder"
variant = importlib.import_module("attlas.backbones").variant(name)[1]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="NamedBackbone",
        name=name,
        num_classes=_base_.num_classes,
        pretrained=_base_.pretrained,
        drop_path_rate=0.1,
    ),
    label_smoothing=0.1,
)
transforms, views = _base_.train_dataloader.dataset.transforms, _base_.views
size, pack = variant.size, dict(mean=variant.mean, std=variant.std)  # of the published weights
transforms[0].size, views[0].size, views[1].size = size, int(size / variant.crop), size
transforms[-1].update(pack)
views[-1].update(pack)
train_dataloader = dict(dataset=dict(transforms=transforms))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=views))
default_hooks = dict(checkpoint=dict(interval=_base_.interval))
del variant
