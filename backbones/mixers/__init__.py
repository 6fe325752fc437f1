"""Operators that were published without a network of their own, for any skeleton and any network of mm."""

from . import ela, lightning_attention, nprf

__all__ = ["ela", "lightning_attention", "nprf"]
