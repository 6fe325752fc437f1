# What every training and test of a segmentor starts from. Bare names are mmseg's; ours have `attlas.` before them.
# Trainings count iterations, as most papers on segmentation do.
_base_ = ["./default_runtime.py"]

default_scope = "mmseg"
default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type="attlas.CheckpointHook", by_epoch=False, interval=2000),
    sampler_seed=dict(type="attlas.IterationSeedHook"),
    progress=dict(type="attlas.ProgressHook"),
)
visualizer = dict(type="SegLocalVisualizer")
log_processor = dict(window_size=50, by_epoch=False)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
# What tools/test.py --tta averages: the probabilities in these sizes, as the image is and mirrored.
tta_model = dict(type="attlas.AveragedSegmentor")
tta_views = dict(ratios=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
