# SVHN: 73,257 + 26,032 digits of house numbers, 32 pixels, from the cropped format (train_32x32.mat and test_32x32.mat
# of http://ufldl.stanford.edu/housenumbers).
_base_ = "cifar10.py"

# mean and standard deviation of the training pictures
pack = dict(type="PackImage", mean=(111.61, 113.17, 120.56), std=(50.49, 51.26, 50.24))
svhn = dict(type="SVHN", root="data/svhn")
train_dataloader = dict(dataset=dict(**svhn, transforms=[dict(type="RandomCrop", size=32, padding=4), pack]))
val_dataloader = test_dataloader = dict(dataset=dict(**svhn, transforms=[pack]))
