# Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes in 10 classes, padded from 28 to 32 pixels.
# apt-get install dataset-fashion-mnist, or set `root` of the three data sets to a folder with its IDX files.
train_dataloader = dict(
    batch_size=128,
    num_workers=0,  # a picture takes 0.2 ms; on a CPU the network wants the cores
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="FashionMNIST",
        split="train",
        transforms=[
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomFlip"),
            # mean and standard deviation of the training pictures
            dict(type="PackImage", mean=(72.94, 72.94, 72.94), std=(90.02, 90.02, 90.02)),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=256,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="FashionMNIST",
        split="test",
        transforms=[
            dict(type="Pad", padding=2),
            dict(type="PackImage", mean=(72.94, 72.94, 72.94), std=(90.02, 90.02, 90.02)),
        ],
    ),
)
val_evaluator = test_evaluator = dict(type="ImageAccuracy")
val_cfg = dict()
test_cfg = dict()
