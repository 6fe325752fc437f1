# A small DnCNN for the built-in photographs under noise of sigma 25: minutes on a CPU, from nothing. It has no batch
# norms, whose statistics in DnCNN are nearly those of the last batch: of 16 patches they are too rough.
_base_ = ["../_base_/photographs_noise.py", "../_base_/schedule_photographs.py"]

model = dict(
    type="Restorer",
    network=dict(type="DnCNN", in_channels=3, depth=10, width=32, norm=False),
    losses=dict(mse=1.0),
)
train_cfg = dict(max_iters=2000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=2000, T_max=1900, eta_min=1e-6),
]
# noise is in all channels, so the figures are means over them
val_evaluator = [dict(type="ImagePSNR", channels="RGB"), dict(type="ImageSSIM", channels="RGB")]
test_evaluator = [
    dict(type="ImagePSNR", channels="RGB", by_picture=True),
    dict(type="ImageSSIM", channels="RGB", by_picture=True),
]
