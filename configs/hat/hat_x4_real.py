# HAT by 4 for real photographs, as the authors: the first of their two stages, with L1 alone. 8 GPUs with 4 patches
# each, DF2K and OutdoorSceneTraining in DATA. The second stage, a GAN, is not here; its networks load
# (Real_HAT_GAN_SRx4.pth).
# Ours: true pictures are not sharpened; all eight symmetries, where the authors flip; validated on Set5, made worse in
# the same way.
_base_ = ["../_base_/df2k.py", "../_base_/hat.py"]

name = "{{$NETWORK:hat}}"
mixer = "{{$MIXER:own}}"
scale = int("{{$SCALE:4}}")
data_root = "{{$DATA:data/DFO}}"
benchmark = "{{$BENCHMARK:data/Set5/GTmod12}}"
kind = name if mixer == "own" else f"{name}_{mixer}"
work_dir = f"work_dirs/{kind}_x{scale}_real"
model = dict(network=dict(scale=scale))
pictures = dict(
    _delete_=True,
    type="DegradedImages",
    degradation=dict(type="RealESRGAN", scale=scale),
    transforms=[dict(type="PackPair")],
)
train_dataloader = dict(dataset=dict(**pictures, root=data_root, patch=64, symmetries=True))
val_dataloader = test_dataloader = dict(dataset=dict(**pictures, root=benchmark))
val_evaluator = test_evaluator = [dict(type="ImagePSNR", channels="RGB"), dict(type="ImageSSIM", channels="RGB")]
optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_cfg = dict(max_iters=1_000_000, val_interval=10_000)
