# RISurConv as released, on ScanObjectNN's hardest variant: published overall accuracy 93.1 in all protocols.
# The scans have no normals. The release computes them once, before any rotation; here the tests compute them after.
_base_ = "risurconv_modelnet40.py"

root = "data/ScanObjectNN/h5_files"

model = dict(network=dict(num_classes=15, num_points=512))
sampling = [dict(type="FarthestPoints", num=1024, start="random"), dict(type="Center")]
normals = dict(type="EstimateNormals", k=32)
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        _delete_=True,
        type="ScanObjectNN",
        root=root,
        split="train",
        variant="PB_T50_RS",
        transforms=[*sampling, normals, dict(type="Shuffle")],
    ),
)
test_set = dict(type="ScanObjectNN", root=root, split="test", variant="PB_T50_RS", transforms=sampling)
val_dataloader = dict(dataset=dict(_delete_=True, **{**test_set, "transforms": [*sampling, normals]}))
test_dataloader = dict(dataset=dict(dataset=dict(_delete_=True, **test_set), transforms=[normals]))
auto_scale_lr = dict(base_batch_size=16)
