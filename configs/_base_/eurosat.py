# EuroSAT (Helber et al., 2019): 27,000 pictures of 64 pixels from Sentinel-2, 10 kinds of land use, a folder for each
# below `root` (EuroSAT_RGB.zip of https://zenodo.org/records/7711810). A fifth of each class is held out.
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        root="data/EuroSAT_RGB",
        split="train",
        transforms=[
            dict(type="RandomResizedCrop", size=64, scale=(0.5, 1.0)),
            dict(type="RandomFlip"),
            dict(type="RandomFlip", direction="vertical"),  # seen from above there is no up
            dict(type="PackImage"),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=256,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        root="data/EuroSAT_RGB",
        split="test",
        transforms=[dict(type="PackImage")],
    ),
)
val_evaluator = test_evaluator = dict(type="ImageAccuracy")
val_cfg = dict()
test_cfg = dict()
