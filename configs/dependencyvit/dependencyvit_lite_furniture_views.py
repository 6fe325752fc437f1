# dependencyvit_furniture_views.py with pruning: of 64 patches 48, 32 and 16 are left behind three of the six blocks.
_base_ = "dependencyvit_furniture_views.py"

model = dict(backbone=dict(prune_blocks=(1, 2, 3), prune_ratio=0.25))
