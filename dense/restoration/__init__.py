"""Restoration: pictures to better pictures, on MMEngine."""

from .metrics import ImagePSNR, ImageSSIM
from .restorer import RestorationPreprocessor, Restorer

__all__ = ["ImagePSNR", "ImageSSIM", "RestorationPreprocessor", "Restorer"]
