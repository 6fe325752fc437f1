# Super-resolution on DF2K: DIV2K and Flickr2K in the sub-images that BasicSR's scripts cut, in the folder DATA.
# Validated on Set5, or on another set of its layout that BENCHMARK names, such as data/Urban100.
# `scale`, or SCALE in the environment, is the factor; each config that has this one as a base says which if nobody
# does.
import importlib

_base_ = "restoration_runtime.py"

scale = int("{{$SCALE:}}")
importlib.import_module("attlas.data").one_of("scale", str(scale), ("2", "3", "4"))
data_root = "{{$DATA:data/DF2K}}"
benchmark = "{{$BENCHMARK:data/Set5}}"

train_dataloader = dict(
    batch_size=4,
    num_workers=6,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="EndlessSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="PairedImages",
        root=data_root,
        layout="DF2K_sub",
        scale=scale,
        patch=64,
        symmetries=True,
        transforms=[dict(type="PackPair")],
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="PairedImages", root=benchmark, layout="GTmod", scale=scale, transforms=[dict(type="PackPair")]),
)
