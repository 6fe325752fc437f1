# What every training and test of Attlas starts from. A config takes it by `_base_ = ["../_base_/default_runtime.py"]`
# and says what differs.
default_scope = "attlas"

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=10),  # lines in the log, scalars in vis_data/scalars.json
    param_scheduler=dict(type="ParamSchedulerHook"),
    # the newest checkpoint; the best too with `save_best="z/OA"` or another name that the metric prints
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type="IterationSeedHook"),  # a resumed training repeats an uninterrupted one, bit for bit
    progress=dict(type="ProgressHook"),
)

env_cfg = dict(
    cudnn_benchmark=False,
    # one OpenCV thread for each worker: they would fight over the cores
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=1),
    dist_cfg=dict(backend="nccl"),  # without a GPU the Runner takes gloo
)
randomness = dict(seed=0)

# TensorBoard: visualizer = dict(vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")])

log_processor = dict(window_size=10, by_epoch=True)
log_level = "INFO"
load_from = None  # a checkpoint to begin with: a file of ours or of the authors, .pth or .safetensors
resume = False
