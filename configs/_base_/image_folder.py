# Pictures of your own, a folder for each class (see ImageFolder), a network for them, and a schedule for so many.
# A fifth of each class is held out, unless the folders are split already (train and val or test, in any spelling).
# From the environment, or by --cfg-options:
#   root        IMAGES       the folder
#   name        BACKBONE     the variant; each config that has this one as a base says which if nobody does
#   max_epochs  MAX_EPOCHS   epochs, with warm-up and cosine; 2,000 iterations if not given, in 20 to 200 epochs
#   pretrained  PRETRAINED   weights to begin with: a file, or "auto" for those published; then the learning rate falls
#                            with the distance from the head
import importlib

_base_ = "default_runtime.py"

root = "{{$IMAGES:data/images}}"
name = "{{$BACKBONE:}}"
pretrained = {"None": None}.get("{{$PRETRAINED:None}}", "{{$PRETRAINED:None}}")
pictures = importlib.import_module("attlas.backbones.classification.datasets").ImageFolder
first_split = importlib.import_module("attlas.data").first_split
num_classes, count = len(pictures(root, "all").classes), len(pictures(root, "train"))
val_split, test_split = first_split(pictures, root, ("val", "test")), first_split(pictures, root, ("test", "val"))

batch_size = min(64, max(8, count // 8), count)  # of sixty pictures, some iterations an epoch are left
num_workers = min(8, importlib.import_module("os").cpu_count() or 1) if count >= 500 else 0
max_epochs = int("{{$MAX_EPOCHS:0}}") or min(200, max(20, 2000 // (count // batch_size)))
work_dir = f"work_dirs/{name}_folder"
del pictures, first_split

variant = importlib.import_module("attlas.backbones").variant(name)[1]
size, pack = variant.size, dict(type="PackImage", mean=variant.mean, std=variant.std)  # of the published weights
views = [dict(type="Resize", size=int(size / variant.crop)), dict(type="CenterCrop", size=size), pack]
del variant

model = dict(
    type="ImageClassifier",
    backbone=dict(type="NamedBackbone", name=name, num_classes=num_classes, pretrained=pretrained, drop_path_rate=0.1),
    label_smoothing=0.1,
)

loader = dict(num_workers=num_workers, persistent_workers=num_workers > 0, collate_fn=dict(type="default_collate"))
train_dataloader = dict(
    **loader,
    batch_size=batch_size,
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    dataset=dict(
        type="ImageFolder",
        root=root,
        split="train",
        transforms=[
            dict(type="RandomResizedCrop", size=size, scale=(0.3, 1.0)),
            dict(type="RandomFlip"),  # leave it out where left and right differ, as in texts
            dict(type="ColorJitter", brightness=0.3, contrast=0.3, saturation=0.3),
            pack,
        ],
    ),
)
held_out = dict(**loader, batch_size=batch_size, sampler=dict(type="DefaultSampler", shuffle=False))
val_dataloader = dict(**held_out, dataset=dict(type="ImageFolder", root=root, split=val_split, transforms=views))
test_dataloader = dict(**held_out, dataset=dict(type="ImageFolder", root=root, split=test_split, transforms=views))
val_evaluator = test_evaluator = dict(type="ImageAccuracy")
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=0.8 if pretrained else None),
    optimizer=dict(type="AdamW", lr=(5e-4 if pretrained else 1e-3) * batch_size / 64, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
warmup = max_epochs / 10 if max_epochs * (count // batch_size) >= 20 else 0
cosine = dict(begin=warmup, end=max_epochs, eta_min_ratio=0.01)
param_scheduler = [dict(type="CosineAnnealingLR", **cosine, convert_to_iter_based=True)]
if warmup:
    param_scheduler += [dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup, convert_to_iter_based=True)]
interval = max(1, max_epochs // 10)
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=interval)
default_hooks = dict(checkpoint=dict(interval=interval))
