# HAT against Gaussian noise of SIGMA (15, 25, 50) on DFWB, in color, or grey (CHANNELS=1). The authors have released
# neither network nor recipe; the network is as dense/restoration/hat.py says, and the recipe is SwinIR's: 8 GPUs with
# one patch of 128 each (and that of 25 and 50 from the weights of 15, in half of the time).
#   python tools/train.py configs/hat/hat_denoising_dfwb.py --cfg-options sigma=50 channels=1
_base_ = ["../_base_/dfwb.py", "../_base_/hat.py"]

name = "{{$NETWORK:hat}}"
mixer = "{{$MIXER:own}}"
channels = int("{{$CHANNELS:3}}")
sigma = float("{{$SIGMA:25}}")
kind = name if mixer == "own" else f"{name}_{mixer}"
work_dir = f"work_dirs/{kind}_{'color' if channels == 3 else 'grey'}{sigma:g}_dfwb"
degradation = dict(type="GaussianNoise", sigma=sigma)
train_dataloader = dict(dataset=dict(degradation=degradation))
val_dataloader = test_dataloader = dict(dataset=dict(degradation=degradation))
model = dict(network=dict(scale=1, in_channels=channels), losses=dict(_delete_=True, charbonnier=1.0))
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.999)))
train_cfg = dict(max_iters=1_600_000)
milestones = [800_000, 1_200_000, 1_400_000, 1_500_000]
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=milestones, gamma=0.5)]
auto_scale_lr = dict(base_batch_size=8)
