"""A network small enough to train in a test."""

import torch.nn.functional as F
from torch import nn

from attlas.registry import MODELS


@MODELS.register_module()
class SmallUpscaler(nn.Module):
    """Bicubic upsampling plus two 3x3 convolutions, which begin as nothing unless `start` says otherwise."""

    def __init__(self, scale=2, channels=3, width=8, multiple=4, start=0.0):
        super().__init__()
        self.scale, self.multiple = scale, multiple
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels * scale**2, 3, padding=1)
        nn.init.normal_(self.last.weight, std=start)
        nn.init.zeros_(self.last.bias)

    def forward(self, x):
        assert x.shape[2] % self.multiple == 0
        assert x.shape[3] % self.multiple == 0
        correction = F.pixel_shuffle(self.last(self.first(x).tanh()), self.scale)
        if self.scale == 1:
            return x + correction
        return F.interpolate(x, scale_factor=self.scale, mode="bicubic") + correction
