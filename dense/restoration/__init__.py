"""Restoration: degraded images to images, on MMEngine.

Every network takes (B, C, H, W) in [0, 1], of any height and width, and gives (B, C, scale H, scale W). Its
attributes are `scale` and `multiple`, the number that its sides are padded to a multiple of inside.
"""

from .datasets import DegradedImages, PackPair, PairedImages
from .dncnn import DnCNN
from .ffnet_sr import FFNetSR
from .hat import HAT
from .isotropic import IsotropicRestorer
from .metrics import ImagePSNR, ImageSSIM
from .nafnet import NAFNet
from .photographs import Photographs
from .restorer import RestorationPreprocessor, Restorer
from .weighted_convolution import WeightedConv1d, WeightedConv2d, WeightedConv3d, convert, fold

__all__ = [
    "HAT",
    "DegradedImages",
    "DnCNN",
    "FFNetSR",
    "ImagePSNR",
    "ImageSSIM",
    "IsotropicRestorer",
    "NAFNet",
    "PackPair",
    "PairedImages",
    "Photographs",
    "RestorationPreprocessor",
    "Restorer",
    "WeightedConv1d",
    "WeightedConv2d",
    "WeightedConv3d",
    "convert",
    "fold",
]
