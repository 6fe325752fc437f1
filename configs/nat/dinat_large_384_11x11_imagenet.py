# DiNAT-Large with a kernel of 11x11 pixels, fine-tuned at 384 pixels: published top-1 87.5.
_base_ = "dinat_large_384_imagenet.py"

model = dict(backbone=dict(name="dinat_large_384_11x11"))
load_from = "dinat_large_in22k_224_11x11.pth"
