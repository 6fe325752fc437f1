# The small DnCNN with weighted convolutions: the density that their authors suggest for 3 x 3.
_base_ = ["./dncnn_small_photos.py"]

model = dict(network=dict(conv_cfg=dict(type="WeightedConv2d", den=[0.7])))
