"""Restoration: degraded images to clean ones, of the same or a larger size."""

from .hat import HAT

__all__ = ["HAT"]
