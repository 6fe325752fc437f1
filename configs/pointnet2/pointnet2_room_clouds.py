# PointNet++ (single-scale grouping) with normals on the furnished rooms as clouds.
_base_ = ["../_base_/default_runtime.py", "../_base_/schedule_adamw.py", "../_base_/room_clouds.py"]

model = dict(network=dict(type="PointNet2Segmenter", num_classes=17, num_categories=0))
