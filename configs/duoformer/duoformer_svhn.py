# DuoFormer on SVHN, enlarged to 224 pixels: as on CIFAR-10, but that digits are not mirrored. Nothing was published for
# it. 3 scales unless told otherwise, and a pyramid without weights to begin with:
#   SCALES=2 PYRAMID_WEIGHTS=resnet50.pth python tools/train.py configs/duoformer/duoformer_svhn.py
_base_ = "duoformer_cifar10.py"

work_dir = f"work_dirs/duoformer_{_base_.scales}_svhn"

svhn = dict(type="SVHN", root="data/svhn")
# mean and standard deviation of the training pictures
pack = dict(type="PackImage", mean=(111.61, 113.17, 120.56), std=(50.49, 51.26, 50.24))
large = [_base_.large[0], pack]
train_dataloader = dict(dataset=dict(**svhn, transforms=[_base_.train_dataloader.dataset.transforms[0], *large]))
val_dataloader = test_dataloader = dict(dataset=dict(**svhn, transforms=large))
