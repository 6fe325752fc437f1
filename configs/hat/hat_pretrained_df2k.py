# HAT on DF2K from the weights of hat_imagenet_pretraining.py of the same factor, as the authors. Published PSNR by 4 of
# Set5 / Set14 / BSD100 / Urban100 / Manga109: hat_l 33.30 / 29.47 / 28.09 / 28.60 / 33.09.
_base_ = "hat_x4_df2k.py"

name = "{{$NETWORK:hat_l}}"
mixer = "{{$MIXER:own}}"
scale = int("{{$SCALE:4}}")
kind = name if mixer == "own" else f"{name}_{mixer}"
work_dir = f"work_dirs/{kind}_x{scale}_pretrained_df2k"
load_from = f"work_dirs/{kind}_x{scale}_imagenet/iter_800000.pth"
ignore_mismatched = []
optim_wrapper = dict(optimizer=dict(lr=1e-5))
