"""Operators that were published without a network of their own, for any skeleton and any network of mm."""

from . import combiner, ela, lightning_attention, nprf, tap

__all__ = ["combiner", "ela", "lightning_attention", "nprf", "tap"]
