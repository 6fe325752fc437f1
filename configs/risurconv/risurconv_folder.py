# RISurConv on shapes of your own, a folder for each class:
#   SHAPES=path/to/shapes python tools/train.py configs/risurconv/risurconv_folder.py
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
epochs = max(40, 700 // (count // batch_size))  # a small folder needs as many iterations as the furniture, not epochs

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
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=epochs // 8, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=epochs // 8,
        end=epochs,
        T_max=epochs - epochs // 8,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs // 4)
default_hooks = dict(checkpoint=dict(interval=epochs // 4))
