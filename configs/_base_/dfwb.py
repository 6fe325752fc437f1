# Tasks of the same size on DFWB: DIV2K, Flickr2K, WED and BSD500, a folder each in DATA, which the `degradation` of a
# config makes worse patch by patch. Validated on CBSD68, or on the pictures of another folder, BENCHMARK.
# `channels`, or CHANNELS, is 3, or 1 for grey.
import importlib

_base_ = "restoration_runtime.py"

channels = int("{{$CHANNELS:}}")
importlib.import_module("attlas.data").one_of("channels", str(channels), ("1", "3"))
data_root = "{{$DATA:data/DFWB}}"
benchmark = "{{$BENCHMARK:data/CBSD68}}"

pictures = dict(type="DegradedImages", grey=channels == 1, transforms=[dict(type="PackPair")])
train_dataloader = dict(
    batch_size=1,
    num_workers=6,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="EndlessSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        **pictures,
        root=[f"{data_root}/DIV2K", f"{data_root}/Flickr2K", f"{data_root}/WED", f"{data_root}/BSD500"],
        patch=128,
        symmetries=True,
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**pictures, root=benchmark),
)
val_evaluator = test_evaluator = [dict(type="ImagePSNR", channels="RGB"), dict(type="ImageSSIM", channels="RGB")]
