# Bytes of the standard library that ships with Python: 151 files to train on, 17 to test (Python 3.11). The bigram
# model counts the training text.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,  # a window takes microseconds
    sampler=dict(type="EndlessSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="TextFiles", split="train", length=256, transforms=[]),
)
val_dataloader = test_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="TextFiles", split="test", length=1024, transforms=[]),
)
val_evaluator = test_evaluator = dict(type="BitsPerByte", bigram=dict(type="TextFiles", split="train"))
val_cfg = dict()
test_cfg = dict()
