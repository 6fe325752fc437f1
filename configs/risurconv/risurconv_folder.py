# RISurConv on shapes of your own, a folder for each class:
#   SHAPES=path/to/shapes python tools/train.py configs/risurconv/risurconv_folder.py
# Meshes and clouds may be mixed. A fifth of each class is held out for testing, unless the folders are split already
# (<class>/train, <class>/test). No need to align them: the answer does not depend on how a shape is turned.
import importlib

_base_ = "risurconv_furniture14.py"

root = "{{$SHAPES:data/shapes}}"
num_classes = len(importlib.import_module("attlas.pointnets.datasets").ShapeFolder(root, "all").classes)

points = [dict(type="RandomPoints", num=1024), dict(type="EstimateNormals", only_missing=True)]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ShapeFolder",
        root=root,
        split="train",
        transforms=[
            *points,
            dict(type="RandomRotation", group="SO3"),
            dict(type="RandomScale", low=0.75, high=1.25, anisotropic=True),
            dict(type="UnitSphere"),
            dict(type="RandomScale", low=0.9, high=1.1),
        ],
    )
)
test_set = dict(type="ShapeFolder", root=root, split="test", transforms=[*points, dict(type="UnitSphere")])
val_dataloader = dict(dataset=dict(_delete_=True, **test_set))
test_dataloader = dict(dataset=dict(dataset=dict(_delete_=True, **test_set)))
model = dict(network=dict(num_classes=num_classes))
