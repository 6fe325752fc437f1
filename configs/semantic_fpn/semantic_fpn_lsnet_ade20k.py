# LSNet in Semantic FPN on ADE20K. Published mIoU: lsnet_t 40.1, lsnet_s 41.6, lsnet_b 43.1.
# Its maps have strides 8 to 64.
_base_ = ["../_base_/semantic_fpn.py", "../_base_/ade20k_80k.py"]

name = "{{$BACKBONE:lsnet_t}}"
work_dir = f"work_dirs/semantic_fpn_{name}_ade20k"
model = dict(decode_head=dict(feature_strides=[8, 16, 32, 64]))
train_cfg = dict(max_iters=40_000)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40_000)]
