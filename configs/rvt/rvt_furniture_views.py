# A small RVT with token-aware pooling and attention diversification on the built-in pictures of furniture: minutes on a
# CPU. rvt_plain_furniture_views.py is the same without either. How both do on corrupted pictures:
#   python tools/test.py configs/rvt/rvt_furniture_views.py CHECKPOINT --corruptions all
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_views.py", "../_base_/schedule_views.py"]

model = dict(
    type="ImageClassifier",
    label_smoothing=0.1,
    diversification=1.0,
    backbone=dict(type="RVT", dims=(144,), depths=(4,), heads=6, num_classes=14),
)
