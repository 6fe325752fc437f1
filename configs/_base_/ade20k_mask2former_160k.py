# ADE20K, or data like it, for 160,000 iterations of 16 images as Mask2Former trains. `data_root`, or DATA in the
# environment, is its folder.
_base_ = ["segmentation_runtime.py", "ade20k.py"]

train_cfg = dict(type="IterBasedTrainLoop", max_iters=160_000, val_interval=16_000)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160_000)]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "backbone": dict(lr_mult=0.1),
            "query_embed": dict(decay_mult=0.0),
            "query_feat": dict(decay_mult=0.0),
            "level_embed": dict(decay_mult=0.0),
        },
    ),
)
auto_scale_lr = dict(base_batch_size=16)
sync_bn = "torch"  # batch norms of several GPUs take their statistics together
