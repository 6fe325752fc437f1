# Part segmentation at a size that trains in half a minute, on what tests/part_files.py writes.
_base_ = ["../../configs/risurconv/risurconv_shapenetpart.py"]

model = dict(
    num_points=256,
    network=dict(
        num_points=64,
        channels=(16, 32, 64),
        neighbors=(12, 16, 16),
        decoder=((64, 64), (32, 32), (32,)),
        decoder_neighbors=(8, 8, 8),
        width=32,
    ),
)
train_transforms = _base_.train_dataloader.dataset.transforms
train_transforms[1].num = 256
train_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(cache=None, transforms=train_transforms))
val_dataloader = dict(num_workers=0, dataset=dict(cache=None))
test_dataloader = dict(num_workers=0, dataset=dict(dataset=dict(cache=None)))
optim_wrapper = dict(optimizer=dict(lr=4e-3))
param_scheduler = dict(_delete_=True, type="CosineAnnealingLR", T_max=12, eta_min=1e-5, convert_to_iter_based=True)
train_cfg = dict(max_epochs=12, val_interval=12)
