# RISurConv on shapes of your own, a folder for each class:
#   SHAPES=path/to/shapes python tools/train.py configs/risurconv/risurconv_folder.py
# Trains for some 700 iterations and at least 40 epochs unless told otherwise: --cfg-options max_epochs=30
# Meshes and clouds may be mixed. A fifth of each class is held out for testing, unless the folders are split already
# (<class>/train and <class>/test, or train/<class> and test/<class>; "val" will do for "test"). No need to align them:
# the answer does not depend on how a shape is turned.
import importlib

_base_ = "risurconv_furniture14.py"

root = "{{$SHAPES:data/shapes}}"
shapes = importlib.import_module("attlas.pointnets.datasets").ShapeFolder
num_classes = len(shapes(root, "all").classes)
count = len(shapes(root, "train"))
first_split = importlib.import_module("attlas.data").first_split
val_split, test_split = first_split(shapes, root, ("val", "test")), first_split(shapes, root, ("test", "val"))
del shapes, first_split

batch_size = min(16, count)
# a small folder needs as many iterations as the furniture, not epochs
max_epochs = int("{{$MAX_EPOCHS:0}}") or max(40, 700 // (count // batch_size))

normals = dict(type="EstimateNormals", only_missing=True)  # of clouds without, and after every rotation
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        _delete_=True,
        type="ShapeFolder",
        root=root,
        split="train",
        transforms=[
            dict(type="RandomPoints", num=1024),
            dict(type="RandomRotation", group="SO3"),
            dict(type="RandomScale", low=0.75, high=1.25, anisotropic=True),
            dict(type="UnitSphere"),
            dict(type="RandomScale", low=0.9, high=1.1),
            normals,
        ],
    ),
)
sampling = [dict(type="RandomPoints", num=1024), dict(type="UnitSphere")]
held_out = dict(type="ShapeFolder", root=root)
val_set, test_set = dict(**held_out, split=val_split), dict(**held_out, split=test_split)
val_dataloader = dict(dataset=dict(_delete_=True, **val_set, transforms=[*sampling, normals]))
test_dataloader = dict(dataset=dict(dataset=dict(_delete_=True, **test_set, transforms=sampling), transforms=[normals]))
model = dict(network=dict(num_classes=num_classes))
warmup = max_epochs / 8 if max_epochs * (count // batch_size) >= 20 else 0
param_scheduler = [
    dict(type="CosineAnnealingLR", begin=warmup, end=max_epochs, eta_min=1e-5, convert_to_iter_based=True)
]
if warmup:
    param_scheduler += [dict(type="LinearLR", start_factor=0.1, begin=0, end=warmup, convert_to_iter_based=True)]
interval = max(1, max_epochs // 4)
train_cfg = dict(max_epochs=max_epochs, val_interval=interval)
default_hooks = dict(checkpoint=dict(interval=interval))
