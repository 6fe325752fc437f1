# The demo's pipeline at a size that trains in seconds.
_base_ = ["../../configs/risurconv/risurconv_furniture14.py"]

model = dict(
    network=dict(num_points=64, channels=(16, 32, 64), neighbors=(12, 16), width=32),
)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="SamplePoints", num=256, include_normals=True),
            dict(type="RandomRotation", group="z"),
            dict(type="UnitSphere"),
        ]
    )
)
small = [dict(type="SamplePoints", num=256, include_normals=True), dict(type="UnitSphere")]
val_dataloader = dict(dataset=dict(transforms=small))
test_dataloader = dict(dataset=dict(dataset=dict(transforms=small), views=dict(_delete_=True, z=1, SO3=2)))
param_scheduler = dict(_delete_=True, type="CosineAnnealingLR", T_max=12, eta_min=1e-5, convert_to_iter_based=True)
optim_wrapper = dict(optimizer=dict(lr=4e-3))
train_cfg = dict(max_epochs=12, val_interval=12)
