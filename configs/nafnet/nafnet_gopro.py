# NAFNet against motion blur, on GoPro, as the authors: 8 GPUs with 4 (width 32) or 8 (width 64) patches each, out of
# pieces of 512 pixels in DATA/sharp_crops and DATA/blur_crops. Published PSNR (RGB) on the whole pictures of the test,
# in BENCHMARK/target and BENCHMARK/input: nafnet_gopro_width32 32.87, nafnet_gopro_width64 33.71.
_base_ = "../_base_/nafnet.py"

name = "{{$NETWORK:nafnet_gopro_width32}}"
data_root = "{{$DATA:data/GoPro/train}}"
benchmark = "{{$BENCHMARK:data/GoPro/test}}"
work_dir = f"work_dirs/{name}"
train_dataloader = dict(dataset=dict(root=data_root, truth="sharp_crops", image="blur_crops", symmetries=True))
val_dataloader = test_dataloader = dict(dataset=dict(root=benchmark, truth="target", image="input"))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-3 if name.endswith("64") else 0.0))
