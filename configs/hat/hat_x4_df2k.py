# HAT by 4 on DF2K, as the authors, from the weights by 2: ours, or the authors' HAT_SRx2.pth (load_from). Published
# PSNR of Set5 / Set14 / BSD100 / Urban100 / Manga109: hat_s 32.92 / 29.15 / 27.97 / 27.87 / 32.35, hat 33.04 / 29.23 /
# 28.00 / 27.97 / 32.48.
_base_ = "hat_df2k.py"

name = "{{$NETWORK:hat}}"
mixer = "{{$MIXER:own}}"
scale = int("{{$SCALE:4}}")
kind = name if mixer == "own" else f"{name}_{mixer}"
work_dir = f"work_dirs/{kind}_x{scale}_from_x2_df2k"
load_from = f"work_dirs/{kind}_x2_df2k/iter_500000.pth"
ignore_mismatched = [r"^network\.upsample\."]  # of the two steps by 2, the file has one
optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_cfg = dict(max_iters=250_000)
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=[125_000, 200_000, 225_000, 240_000], gamma=0.5)]
