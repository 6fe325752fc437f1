# What every training and test of a detector starts from. Bare names are mmdet's; ours have `attlas.` before them.
_base_ = ["./default_runtime.py"]

default_scope = "mmdet"
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(type="attlas.CheckpointHook"),
    sampler_seed=dict(type="attlas.IterationSeedHook"),
    progress=dict(type="attlas.ProgressHook"),
)
visualizer = dict(type="DetLocalVisualizer")
log_processor = dict(window_size=50)
