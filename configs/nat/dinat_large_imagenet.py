# DiNAT-Large of ImageNet-22k fine-tuned on ImageNet-1k, as the authors: 8 GPUs with 64 images each, the learning rate
# falling in a line, no mixed images. Published top-1 86.6.
_base_ = "nat_mini_imagenet.py"

model = dict(backbone=dict(name="dinat_large", drop_path_rate=0.35), mixup=0.0, cutmix=0.0)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=1e-4))
param_scheduler = [dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=30, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30, val_interval=1)
auto_scale_lr = dict(base_batch_size=512)
load_from = "dinat_large_in22k_224.pth"
ignore_mismatched = [r"\bhead\.fc\."]  # which is for the classes of ImageNet-22k
