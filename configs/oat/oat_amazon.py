# OAT on Amazon book covers, 6 rows of 14. The authors' file of the order of the trials, if you have it, is the `index`
# of the three data sets: --cfg-options train_dataloader.dataset.index=FILE ...
_base_ = "../_base_/oat.py"

data_root = "{{$DATA:data/amazon_data}}"
_grid = dict(rows=6, columns=14)
_data = dict(type="BookCovers", root=data_root, transforms=[dict(type="CutObjects", size=(150, 93))])

model = dict(**_grid)
train_dataloader = dict(dataset=dict(**_data, split="train"))
val_dataloader = dict(dataset=dict(**_data, split="val"))
test_dataloader = dict(dataset=dict(**_data, split="test"))
val_evaluator = test_evaluator = dict(**_grid)
