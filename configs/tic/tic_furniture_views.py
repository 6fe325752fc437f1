# A small TiC on the built-in pictures of furniture: minutes on a CPU.
# It trains at 64 pixels. No weight knows a size, so that the same checkpoint is tested at others:
#   python tools/test.py configs/tic/tic_furniture_views.py work_dirs/tic_furniture_views/epoch_20.pth \
#       --cfg-options test_dataloader.dataset.transforms.0.size=96
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(
        type="TiC",
        dims=(32, 64, 128, 192),
        depths=(2, 2, 2, 1),
        heads=(4, 4, 4, 6),
        kernel_size=(5, 5, 3, 3),
        mlp_ratio=2.0,
        num_classes=14,
    ),
)
