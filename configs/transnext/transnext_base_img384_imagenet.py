# TransNeXt-Base of 224 pixels fine-tuned at 384: published top-1 86.2.
_base_ = "transnext_small_img384_imagenet.py"

model = dict(backbone=dict(name="transnext_base_img384", drop_path_rate=0.6))
load_from = "transnext_base_224_1k.pth"
