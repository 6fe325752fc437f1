"""Restoration: pictures to better pictures, on MMEngine."""

from .metrics import ImagePSNR, ImageSSIM

__all__ = ["ImagePSNR", "ImageSSIM"]
