# NAFNet of a variant that `name` (NETWORK) says, with the authors' schedule: a cosine over 200,000 steps of 32 patches
# for width 32, over 400,000 of 64 for width 64; the loss is the negative PSNR. No average of weights.
import importlib

_base_ = "restoration_runtime.py"

name = "{{$NETWORK:}}"
wide = name.endswith("64")
max_iters = 400_000 if wide else 200_000
variants = importlib.import_module("attlas.dense.restoration.nafnet").VARIANTS
options = variants[importlib.import_module("attlas.data").one_of("name", name, tuple(variants))][0]

model = dict(type="Restorer", network=dict(type="NAFNet", **options), losses=dict(psnr=1.0))
pictures = dict(type="PairedImages", scale=1, transforms=[dict(type="PackPair")])
train_dataloader = dict(
    batch_size=8 if wide else 4,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="EndlessSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(**pictures, patch=256),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=pictures,
)
val_evaluator = test_evaluator = [dict(type="ImagePSNR", channels="RGB"), dict(type="ImageSSIM", channels="RGB")]
custom_hooks = []
train_cfg = dict(max_iters=max_iters, val_interval=20_000)
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=False, end=max_iters, T_max=max_iters, eta_min=1e-7)]
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.9), weight_decay=0.0),
    clip_grad=dict(max_norm=0.01),
)
auto_scale_lr = dict(base_batch_size=64 if wide else 32)
del variants
