"""Operators that were published without a network of their own, for any skeleton and any network of mm."""

from . import ela

__all__ = ["ela"]
