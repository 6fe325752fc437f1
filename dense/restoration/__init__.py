"""Restoration: pictures to better pictures, on MMEngine."""

from .datasets import DegradedImages, PackPair, PairedImages
from .metrics import ImagePSNR, ImageSSIM
from .restorer import RestorationPreprocessor, Restorer

__all__ = [
    "DegradedImages",
    "ImagePSNR",
    "ImageSSIM",
    "PackPair",
    "PairedImages",
    "RestorationPreprocessor",
    "Restorer",
]
