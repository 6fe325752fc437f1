# COCO, or data like it, for boxes, 12 epochs ("1x"). `data_root`, or DATA in the environment, is its folder.
_base_ = ["detection_runtime.py", "coco_detection.py", "schedule_detection_1x.py"]

optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4))
