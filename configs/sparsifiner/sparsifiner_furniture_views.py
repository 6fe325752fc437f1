# A small Sparsifiner on the built-in pictures of furniture: minutes on a CPU. Every pixel attends to a quarter of the
# tokens, and the predictors learn from the network's own attention. What it is to be compared with is dense:
#   python tools/train.py configs/sparsifiner/sparsifiner_furniture_views.py --cfg-options model.backbone.keep=1.0
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views_short.py"]

model = dict(
    type="SparsifinerDistiller",
    label_smoothing=0.1,
    logits_weight=0.0,  # without a teacher
    map_weight=0.0,
    self_weight=0.002,
    backbone=dict(
        type="Sparsifiner",
        dim=64,
        depth=6,
        heads=4,
        reduce_tokens=3,
        patch_size=8,
        img_size=64,
        num_classes=14,
    ),
)
