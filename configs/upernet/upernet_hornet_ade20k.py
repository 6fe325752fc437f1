# HorNet in UperNet on ADE20K. Published mIoU, of one scale / several: hornet_tiny_7x7 48.1 / 48.9,
# hornet_tiny_gf 49.2 / 49.3, hornet_small_7x7 49.2 / 49.8, hornet_small_gf 50.0 / 50.5, hornet_base_7x7 50.0 / 50.5,
# hornet_base_gf 50.5 / 50.9; of images of 640: hornet_large_7x7 54.1 / 54.5, hornet_large_gf 55.0 / 55.2. Those with
# global filters were trained with filters for that size, and a layer-wise decay of 0.8 for the large ones.
# The drop path and the weight decay are ours.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:hornet_tiny_7x7}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(
    backbone=dict(drop_path_rate=0.4),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay=0.9, coarse=True),
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
