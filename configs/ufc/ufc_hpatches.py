# A test of any UFC of the form of ufc_spair71k.py on HPatches: tools/test.py configs/ufc/ufc_hpatches.py CHECKPOINT.
# End-point error by the number of the second image, over all pixels of the first that the second shows, in pixels of
# the second as it was given.
_base_ = ["./ufc_spair71k.py"]

data_root = "data/hpatches-sequences-release"
train_dataloader = val_dataloader = train_cfg = val_cfg = val_evaluator = optim_wrapper = param_scheduler = None
test_dataloader = dict(
    batch_size=1,
    dataset=dict(_delete_=True, type="HPatches", root=data_root, split="v", transforms=[dict(type="PackMatches")]),
)
test_evaluator = [
    dict(type="EndPointError", by_category=True),
    dict(type="PCK", of="pixels", alphas=(1, 3, 5)),
]
