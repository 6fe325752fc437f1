# A detector that learns bright shapes in seconds. DATA is a folder that tests/coco_files.py wrote.
_base_ = ["../../configs/_base_/retinanet.py", "../../configs/_base_/coco_boxes_1x.py"]

name = "{{$BACKBONE:hornet_tiny_7x7}}"
size = (96, 64)
model = dict(
    backbone=dict(
        _delete_=True, type="attlas.HorNet", dims=(16, 24, 32, 48), depths=(1, 1, 1, 1), out_indices=(0, 1, 2, 3)
    ),
    neck=dict(out_channels=16, num_outs=4, add_extra_convs=False),
    bbox_head=dict(
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        anchor_generator=dict(octave_base_scale=3, strides=[4, 8, 16, 32]),
    ),
)
place = dict(ann_file="objects.json", data_prefix=dict(img="images"))
read, objects = dict(type="attlas.ReadImage"), dict(type="LoadAnnotations", with_bbox=True)
resize, pack = dict(type="Resize", scale=size, keep_ratio=True), dict(type="PackDetInputs")
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **place,
        filter_cfg=dict(min_size=8),
        pipeline=[read, objects, resize, dict(type="RandomFlip", prob=0.5), pack],
    ),
)
test = dict(num_workers=0, persistent_workers=False, dataset=dict(**place, pipeline=[read, resize, objects, pack]))
val_dataloader = test_dataloader = test
val_evaluator = test_evaluator = dict(ann_file=f"{_base_.data_root}/objects.json")
param_scheduler = [dict(type="CosineAnnealingLR", T_max=30, end=30, eta_min=1e-5, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30, val_interval=30)
optim_wrapper = dict(optimizer=dict(lr=4e-3), clip_grad=dict(max_norm=5.0))
