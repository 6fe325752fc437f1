# FFNet-SR by 2, 3 or 4, as the authors: 64 patches of 192 pixels a step. Published PSNR by 2 of Set5 / Set14 / BSD100 /
# Urban100 / Manga109: ffnet_sr_light 38.23 / 33.75 / 32.34 / 32.81 / 39.23, ffnet_sr 38.32 / 34.28 / 32.43 / 33.23 /
# 39.76. The light one is trained on DIV2K alone.
# Ours: the average of the weights.
# Trains ffnet_sr by 2 unless told otherwise:
#   python tools/train.py configs/ffnet_sr/ffnet_sr_df2k.py --cfg-options name=ffnet_sr_light scale=4
import importlib

_base_ = "../_base_/df2k.py"

name = "{{$NETWORK:ffnet_sr}}"
scale = int("{{$SCALE:2}}")
work_dir = f"work_dirs/{name}_x{scale}_df2k"
variants = importlib.import_module("attlas.dense.restoration.ffnet_sr").VARIANTS
importlib.import_module("attlas.data").one_of("name", name, sorted({key.rpartition("_x")[0] for key in variants}))
options = variants[f"{name}_x{scale}"][0]
layout = "DIV2K_sub" if name == "ffnet_sr_light" else "DF2K_sub"

model = dict(type="Restorer", network=dict(type="FFNetSR", **options), losses=dict(l1=1.0, frequency=0.02))
train_dataloader = dict(batch_size=64, dataset=dict(layout=layout, patch=192 // scale))
train_cfg = dict(max_iters=500_000)
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=False, end=500_000, T_max=500_000, eta_min=1e-5)]
optim_wrapper = dict(optimizer=dict(type="Adam", lr=1e-3))
auto_scale_lr = dict(base_batch_size=64)
del variants
