# CIFAR-100: 50,000 + 10,000 pictures of 32 pixels in 100 classes, from the binary version (cifar-100-binary.tar.gz of
# https://www.cs.toronto.edu/~kriz/cifar.html).
_base_ = "cifar10.py"

# mean and standard deviation of the training pictures
pack = dict(type="PackImage", mean=(129.30, 124.07, 112.43), std=(68.17, 65.39, 70.42))
cifar100 = dict(type="CIFAR100", root="data/cifar-100-binary")
crops = _base_.train_dataloader.dataset.transforms[:-1]
train_dataloader = dict(dataset=dict(**cifar100, transforms=[*crops, pack]))
val_dataloader = test_dataloader = dict(dataset=dict(**cifar100, transforms=[pack]))
