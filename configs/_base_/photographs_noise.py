# The built-in photographs under Gaussian noise of sigma 25, neither clipped nor rounded: 11 to train on and 5 to test.
# Nothing is downloaded. The noise of the test photographs is always the same.
_base_ = ["./photographs_x2.py"]

_degradation = dict(_delete_=True, type="GaussianNoise", sigma=25)
train_dataloader = dict(batch_size=16, dataset=dict(degradation=_degradation, patch=40))
val_dataloader = test_dataloader = dict(dataset=dict(degradation=_degradation))
