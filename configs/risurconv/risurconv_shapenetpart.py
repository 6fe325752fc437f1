# RISurConv's part segmentation as released: published class mIoU 81.5 in SO3/SO3 and z/SO3.
_base_ = ["../_base_/default_runtime.py", "../_base_/shapenetpart.py"]

model = dict(network=dict(type="RISurConvSegmenter"))
