# DiNAT_s-Large of ImageNet-22k fine-tuned on ImageNet-1k: published top-1 86.5.
_base_ = "dinat_large_imagenet.py"

model = dict(backbone=dict(name="dinat_s_large"))
load_from = "dinat_s_large_in22k_224.pth"
