# HAT on DF2K from nothing, as the authors: 8 GPUs with 4 patches each. By 2 and by 3; hat_x4_df2k.py begins with the
# weights by 2.
# Trains hat by 2 unless told otherwise:
#   python tools/train.py configs/hat/hat_df2k.py --cfg-options name=hat_s scale=3
_base_ = ["../_base_/df2k.py", "../_base_/hat.py"]

name = "{{$NETWORK:hat}}"
mixer = "{{$MIXER:own}}"
scale = int("{{$SCALE:2}}")
kind = name if mixer == "own" else f"{name}_{mixer}"
work_dir = f"work_dirs/{kind}_x{scale}_df2k"
model = dict(network=dict(scale=scale))
train_cfg = dict(max_iters=500_000)
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=[250_000, 400_000, 450_000, 475_000], gamma=0.5)]
