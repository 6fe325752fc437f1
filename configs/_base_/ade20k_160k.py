# ADE20K, or data like it, for 160,000 iterations. `data_root`, or DATA in the environment, is its folder.
_base_ = ["segmentation_runtime.py", "ade20k.py", "schedule_segmentation_160k.py"]

sync_bn = "torch"  # batch norms of several GPUs take their statistics together
