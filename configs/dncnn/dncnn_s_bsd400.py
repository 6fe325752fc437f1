# DnCNN for one level of Gaussian noise, SIGMA (15, 25, 50), on 400 grey pictures of BSD500 (Train400), as the authors'
# PyTorch training has it: 128 patches, Adam, a fifth of the learning rate after 30, 60 and 90 of 180 epochs. The
# paper's own, SGD from 0.1 to 1e-4 over 50 epochs, is of a sum of squares, whose gradients are larger. PSNR on BSD68 in
# the paper: 31.73, 29.23, 26.23 at sigma 15, 25, 50.
# Ours: patches at random places, not at every tenth pixel of four sizes of a picture.
_base_ = "../_base_/restoration_runtime.py"

sigma = float("{{$SIGMA:25}}")
data_root = "{{$DATA:data/Train400}}"
benchmark = "{{$BENCHMARK:data/BSD68}}"
work_dir = f"work_dirs/dncnn_s_{sigma:g}_bsd400"

model = dict(type="Restorer", network=dict(type="DnCNN"), losses=dict(mse=1.0))
degradation = dict(type="GaussianNoise", sigma=sigma)
pictures = dict(type="DegradedImages", grey=True, transforms=[dict(type="PackPair")])
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="EndlessSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(**pictures, degradation=degradation, root=data_root, patch=40, symmetries=True),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**pictures, degradation=degradation, root=benchmark),
)
val_evaluator = test_evaluator = [dict(type="ImagePSNR", channels="RGB"), dict(type="ImageSSIM", channels="RGB")]
custom_hooks = []  # no average of weights, which the statistics of the norms would not fit
optim_wrapper = dict(optimizer=dict(type="Adam", lr=1e-3))
epoch = 1862  # batches of 128 of the authors' 238,400 patches
train_cfg = dict(max_iters=180 * epoch)
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=[30 * epoch, 60 * epoch, 90 * epoch], gamma=0.2)]
auto_scale_lr = dict(base_batch_size=128)
