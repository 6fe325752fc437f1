# A small OAT on the built-in shelves of furniture, which a stated model searches (no person looked at them): minutes on
# a CPU. Paths are drawn, not the likeliest ones, so that their statistics can be those of the searcher.
_base_ = ["../_base_/default_runtime.py"]

max_epochs = int("{{$EPOCHS:20}}")
_grid = dict(rows=3, columns=5)
_data = dict(type="FurnitureShelves", **_grid, transforms=[dict(type="CutObjects", size=(40, 40))])

model = dict(
    type="OAT",
    **_grid,
    dim=64,
    mlp_dim=128,
    depth=(2, 2),
    dropout=0.0,
    pointer_dim=64,
    spp=3,
    max_length=24,
    samples=4,
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="EpochSampler", shuffle=True),
    dataset=dict(**_data, split="train", size=2000),
)
val_dataloader = test_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**_data, split="test", size=200),
)
val_evaluator = test_evaluator = dict(type="ScanpathMetrics", **_grid)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-3), clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()
