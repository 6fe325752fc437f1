# NAFNet on SIDD with weighted convolutions, all else as without. What the authors of these trained is not known; 0.7 is
# the density of 3 x 3 taps that their code has as an example.
# A learned one: --cfg-options model.network.conv_cfg.learned=True
_base_ = "nafnet_sidd.py"

name = "{{$NETWORK:nafnet_sidd_width32}}"
work_dir = f"work_dirs/{name}_weighted"
model = dict(network=dict(conv_cfg=dict(type="WeightedConv2d", den=[0.7])))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={".den": dict(lr_mult=100)}))  # of a learned density
