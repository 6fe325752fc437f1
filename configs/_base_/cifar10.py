# CIFAR-10: 50,000 + 10,000 pictures of 32 pixels in 10 classes, from the binary version (cifar-10-binary.tar.gz of
# https://www.cs.toronto.edu/~kriz/cifar.html).
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CIFAR10",
        root="data/cifar-10-batches-bin",
        split="train",
        transforms=[
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomFlip"),
            # mean and standard deviation of the training pictures
            dict(type="PackImage", mean=(125.31, 122.95, 113.87), std=(62.99, 62.09, 66.70)),
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
        type="CIFAR10",
        root="data/cifar-10-batches-bin",
        split="test",
        transforms=[dict(type="PackImage", mean=(125.31, 122.95, 113.87), std=(62.99, 62.09, 66.70))],
    ),
)
val_evaluator = test_evaluator = dict(type="ImageAccuracy")
val_cfg = dict()
test_cfg = dict()
