# DnCNN for Gaussian noise of any level up to 55: patches of 50 pixels, 20 convolutions, as the paper. Validated at
# SIGMA. PSNR on BSD68 in the paper: 31.61, 29.16, 26.23 at sigma 15, 25, 50. In color: NETWORK=cdncnn_b, trained on
# CBSD432, the pictures of BSD500 that are not in CBSD68.
import importlib

_base_ = "dncnn_s_bsd400.py"

name = "{{$NETWORK:dncnn_b}}"
work_dir = f"work_dirs/{name}_bsd400"
variants = importlib.import_module("attlas.dense.restoration.dncnn").VARIANTS
options = variants[importlib.import_module("attlas.data").one_of("name", name, tuple(variants))][0]
grey = options.get("in_channels", 1) == 1
data_root = "{{$DATA:data/Train400}}" if grey else "{{$DATA:data/CBSD432}}"
benchmark = "{{$BENCHMARK:data/BSD68}}" if grey else "{{$BENCHMARK:data/CBSD68}}"
model = dict(network=options)
train_dataloader = dict(
    dataset=dict(root=data_root, degradation=dict(type="GaussianNoise", sigma=(0, 55)), patch=50, grey=grey),
)
val_dataloader = test_dataloader = dict(dataset=dict(root=benchmark, grey=grey))
del variants
