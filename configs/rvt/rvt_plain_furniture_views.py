# The small RVT of rvt_furniture_views.py without token-aware pooling and without attention diversification, in the same
# training.
_base_ = "rvt_furniture_views.py"

model = dict(diversification=0.0, backbone=dict(num_scales=None))
