# RISurConv on the scenes of S3DIS. No result of it is published there.
_base_ = ["../_base_/default_runtime.py", "../_base_/s3dis.py"]

model = dict(network=dict(type="RISurConvSegmenter", num_classes=13, num_categories=0, num_points=1024))
