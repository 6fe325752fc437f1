# DnCNN for Gaussian noise of any level up to 55: patches of 50 pixels, 20 convolutions, as the paper. Validated at
# SIGMA. PSNR on BSD68 in the paper: 31.61, 29.16, 26.23 at sigma 15, 25, 50. In color: NETWORK=cdncnn_b, with BSD500
# but for the pictures of CBSD68 as DATA, and CBSD68 as BENCHMARK.
import importlib

_base_ = "dncnn_s_bsd400.py"

name = "{{$NETWORK:dncnn_b}}"
work_dir = f"work_dirs/{name}_bsd400"
options = importlib.import_module("attlas.dense.restoration.dncnn").VARIANTS[name][0]
grey = options.get("in_channels", 1) == 1
model = dict(network=options)
train_dataloader = dict(
    dataset=dict(degradation=dict(type="GaussianNoise", sigma=(0, 55)), patch=50, grey=grey),
)
val_dataloader = test_dataloader = dict(dataset=dict(grey=grey))
