"""Restoration: degraded images to images.

Every network takes (B, C, H, W) in [0, 1], of any height and width, and gives (B, C, scale H, scale W). Its
attributes are `scale` and `multiple`, the number that its sides are padded to a multiple of inside.
"""

from .dncnn import DnCNN
from .ffnet_sr import FFNetSR
from .hat import HAT
from .nafnet import NAFNet
from .weighted_convolution import WeightedConv1d, WeightedConv2d, WeightedConv3d, convert, fold

__all__ = ["HAT", "DnCNN", "FFNetSR", "NAFNet", "WeightedConv1d", "WeightedConv2d", "WeightedConv3d", "convert", "fold"]
