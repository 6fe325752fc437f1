# RISurConv on shapes of your own, a folder for each class:
#   SHAPES=path/to/shapes python tools/train.py configs/risurconv/risurconv_folder.py
# Meshes and clouds may be mixed. A fifth of each class is held out for testing, unless the folders are split already
# (<class>/train, <class>/test). No need to align them: the answer does not depend on how a shape is turned.
import importlib

_base_ = "risurconv_furniture14.py"

root = "{{$SHAPES:data/shapes}}"
shapes = importlib.import_module("attlas.pointnets.datasets").ShapeFolder
num_classes = len(shapes(root, "all").classes)
batch_size = min(16, len(shapes(root, "train")))
del shapes

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
test_set = dict(type="ShapeFolder", root=root, split="test")
val_dataloader = dict(dataset=dict(_delete_=True, **test_set, transforms=[*sampling, normals]))
test_dataloader = dict(dataset=dict(dataset=dict(_delete_=True, **test_set, transforms=sampling), transforms=[normals]))
model = dict(network=dict(num_classes=num_classes))
