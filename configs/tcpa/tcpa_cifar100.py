# TCPA on CIFAR-100, whose pictures are enlarged, after the authors' recipe; see tcpa_cub.py. The data set is that of
# _base_/cifar100.py.
#   PRETRAINED=FILE python tools/train.py configs/tcpa/tcpa_cifar100.py --amp
_base_ = "tcpa_cub.py"

model = dict(backbone=dict(num_classes=100, image_prompt=False))
cifar100 = dict(_delete_=True, type="CIFAR100", root="data/cifar-100-binary")
train_dataloader = dict(dataset=dict(**cifar100, split="train", transforms=_base_.crops))
val_dataloader = test_dataloader = dict(dataset=dict(**cifar100, split="test", transforms=_base_.views))
optim_wrapper = dict(optimizer=dict(lr=4e-3, weight_decay=0.1))
