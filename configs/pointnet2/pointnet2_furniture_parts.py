# PointNet++ (single-scale grouping) with normals on the parts of the built-in furniture.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_parts.py", "../_base_/schedule_adamw.py"]

model = dict(network=dict(type="PointNet2Segmenter", num_classes=17, num_categories=8))
