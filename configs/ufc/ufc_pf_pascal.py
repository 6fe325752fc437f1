# UFC on PF-PASCAL; see ufc_spair71k.py. PCK by the longer side of the image, as most papers have it there.
_base_ = ["./ufc_spair71k.py"]

data_root = "data/PF-PASCAL"
train_dataloader = dict(dataset=dict(type="PFPascal", root=data_root))
val_dataloader = dict(dataset=dict(type="PFPascal", root=data_root))
test_dataloader = dict(dataset=dict(type="PFPascal", root=data_root))
val_evaluator = test_evaluator = [dict(type="PCK", of="image", by_category=True)]
max_epochs = 50
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=True, T_max=max_epochs, end=max_epochs, eta_min=1e-6),
]
