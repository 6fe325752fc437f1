# OAT on the authors' shelves of yogurt, 3 rows of 9.
_base_ = "../_base_/oat.py"

data_root = "{{$DATA:data/shelves}}"
_grid = dict(rows=3, columns=9)
_data = dict(
    type="ShelfQuestions", root=data_root, shelf="yogurt", transforms=[dict(type="CutObjects", size=(150, 93))]
)

model = dict(**_grid, positions=11)
train_dataloader = dict(dataset=dict(**_data, split="train"))
val_dataloader = dict(dataset=dict(**_data, split="val"))
test_dataloader = dict(dataset=dict(**_data, split="test"))
val_evaluator = test_evaluator = dict(**_grid)
