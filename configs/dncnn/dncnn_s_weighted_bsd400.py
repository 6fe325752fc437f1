# DnCNN for one level of noise with weighted convolutions, all else as without. The authors of these trained it on DIV2K
# and have not said how; 0.7 is the density of 3 x 3 taps that their code has as an example.
# A learned one: --cfg-options model.network.conv_cfg.learned=True
_base_ = "dncnn_s_bsd400.py"

sigma = float("{{$SIGMA:25}}")
work_dir = f"work_dirs/dncnn_s_weighted_{sigma:g}_bsd400"
model = dict(network=dict(conv_cfg=dict(type="WeightedConv2d", den=[0.7])))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={".den": dict(lr_mult=100)}))  # of a learned density
