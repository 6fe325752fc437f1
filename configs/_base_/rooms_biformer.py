# What small detectors of the built-in rooms share, so that they can be compared: the images, a small BiFormer, the
# schedule. The backbone is that of configs/biformer/biformer_furniture_views.py, and begins with what that has learned:
# furniture seen alone. From scratch: --cfg-options pretrained=None. Each detector trains in minutes on a CPU.
_base_ = ["furnished_rooms.py", "detection_runtime.py"]

learned = "{{ fileDirname }}/../biformer/biformer_furniture_views.safetensors"
preprocessor = dict(
    type="DetDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_size_divisor=16,
)
backbone = dict(
    type="attlas.BiFormer",
    dims=(32, 64, 128, 192),
    depths=(1, 1, 2, 1),
    topks=(1, 2, 4, -2),
    regions=4,
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="attlas.LayerDecayConstructor",  # for what must not decay; there is one learning rate
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", begin=0, end=12, T_max=12, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=2)
