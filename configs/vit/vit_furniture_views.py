# A small plain vision transformer on the built-in pictures of furniture: minutes on a CPU. With registers from the
# beginning: --cfg-options model.backbone.registers=4; with registers afterwards: ph_reg/ph_reg_furniture_views.py.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    backbone=dict(type="ViT", dim=64, depth=6, heads=4, patch_size=8, img_size=64, num_classes=14),
)
