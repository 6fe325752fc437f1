# DGCNN's part segmentation at its published size, on points alone, with the recipe of RISurConv. Published instance
# mIoU 85.2, on upright shapes.
_base_ = ["../_base_/default_runtime.py", "../_base_/shapenetpart.py"]

model = dict(network=dict(type="DGCNNSegmenter"))
