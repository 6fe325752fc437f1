# PointNet++ (single-scale grouping) with normals on the scenes of S3DIS.
_base_ = ["../_base_/default_runtime.py", "../_base_/s3dis.py"]

model = dict(network=dict(type="PointNet2Segmenter", num_classes=13, num_categories=0, num_points=(1024, 256)))
