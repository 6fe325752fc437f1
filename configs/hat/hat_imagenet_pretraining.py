# Pre-training of HAT on the pictures of ImageNet, as the authors: 8 GPUs with 4 patches each; hat_pretrained_df2k.py
# goes on. Ours: a picture is made smaller after the patch is cut, which the authors cut out of the smaller picture.
_base_ = ["../_base_/df2k.py", "../_base_/hat.py"]

name = "{{$NETWORK:hat_l}}"
mixer = "{{$MIXER:own}}"
scale = int("{{$SCALE:4}}")
data_root = "{{$DATA:data/imagenet/train}}"
kind = name if mixer == "own" else f"{name}_{mixer}"
work_dir = f"work_dirs/{kind}_x{scale}_imagenet"
model = dict(network=dict(scale=scale))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="DegradedImages",
        root=data_root,
        degradation=dict(type="Bicubic", scale=scale),
        patch=64,
        enlarge=True,
        symmetries=True,
        transforms=[dict(type="PackPair")],
    ),
)
train_cfg = dict(max_iters=800_000, val_interval=10_000)
milestones = [300_000, 500_000, 650_000, 700_000, 750_000]
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=milestones, gamma=0.5)]
