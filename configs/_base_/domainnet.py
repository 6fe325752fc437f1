# DomainNet (Peng et al., 2019): 345 classes in six styles, each a data set of its own, with the augmentation of
# ImageNet at 224 pixels. http://ai.bu.edu/M3SDA has the pictures (take the cleaned version) and the lists:
# data/domainnet/<domain>_{train,test}.txt beside data/domainnet/<domain>/<class>/*. From the environment, or by
# --cfg-options:
#   domain      DOMAIN       clipart, infograph, painting, quickdraw, real or sketch
_base_ = "imagenet.py"

domain = "{{$DOMAIN:clipart}}"
listed = dict(_delete_=True, type="ImageList", root="data/domainnet")
crops, views = (_base_[f"{split}_dataloader"].dataset.transforms for split in ("train", "val"))
train_dataloader = dict(dataset=dict(**listed, file=f"{domain}_train.txt", transforms=crops))
val_dataloader = test_dataloader = dict(dataset=dict(**listed, file=f"{domain}_test.txt", transforms=views))
