# HyperZZW (Terminator) on the pixels of CIFAR-10 as sequences of 1,024 steps, with the recipe of the pictures. The
# paper reports this task, but its code for sequences was never released: the network is ours.
_base_ = "hyperzzw_cifar10.py"

work_dir = "work_dirs/hyperzzw_sequential_cifar10"

model = dict(backbone=dict(sequence=True, img_size=1024))
