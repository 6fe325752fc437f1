# OAT on the authors' shelves of wine, 2 rows of 11; a pyramid of four levels takes crops of bottles.
_base_ = "../_base_/oat.py"

data_root = "{{$DATA:data/shelves}}"
_grid = dict(rows=2, columns=11)
_data = dict(type="ShelfQuestions", root=data_root, shelf="wine", transforms=[dict(type="CutObjects", size=(195, 53))])

model = dict(**_grid, positions=11, crop=(195, 53), spp=4)
train_dataloader = dict(dataset=dict(**_data, split="train"))
val_dataloader = dict(dataset=dict(**_data, split="val"))
test_dataloader = dict(dataset=dict(**_data, split="test"))
val_evaluator = test_evaluator = dict(**_grid)
