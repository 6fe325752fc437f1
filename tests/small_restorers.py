"""Networks small enough for a test."""

import torch
import torch.nn.functional as F
from torch import nn

from attlas.dense.restoration.degradations import imresize
from attlas.registry import MODELS


@MODELS.register_module()
class SmallUpscaler(nn.Module):
    """Bicubic upsampling plus two 3x3 convolutions, which begin as nothing unless `start` says otherwise."""

    def __init__(self, scale=2, channels=3, width=8, multiple=4, start=0.0):
        super().__init__()
        self.scale, self.multiple, self.in_channels = scale, multiple, channels
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


@MODELS.register_module()
class ByImresize(nn.Module):
    """`imresize`, channel by channel, and a constant that is added to each."""

    multiple = 1

    def __init__(self, scale=2, in_channels=3, shift=0.0):
        super().__init__()
        self.scale, self.in_channels, self.shift = scale, in_channels, shift

    def forward(self, x):
        assert x.shape[1] == self.in_channels
        larger = [imresize(image.permute(1, 2, 0).numpy(), self.scale) for image in x]
        return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in larger]) + self.shift
