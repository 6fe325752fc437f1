# As pointnet2_furniture14.py, but trained under all rotations.
_base_ = "pointnet2_furniture14.py"

train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="SamplePoints", num=1024, include_normals=True),
            dict(type="RandomRotation", group="SO3"),
            dict(type="RandomScale", low=0.75, high=1.25, anisotropic=True),
            dict(type="UnitSphere"),
            dict(type="RandomScale", low=0.9, high=1.1),
        ]
    )
)
