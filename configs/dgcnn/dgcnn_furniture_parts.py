# DGCNN's part segmentation at its published size, on points alone, on the parts of the built-in furniture.
_base_ = ["../_base_/default_runtime.py", "../_base_/furniture_parts.py", "../_base_/schedule_adamw.py"]

model = dict(num_points=512, network=dict(type="DGCNNSegmenter", num_classes=17, num_categories=8))
train_transforms = _base_.train_dataloader.dataset.transforms
train_transforms[0].num = 512  # its graphs in feature space cost four times as much at 1,024
train_dataloader = dict(dataset=dict(transforms=train_transforms))
