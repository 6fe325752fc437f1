"""Segmentation: maps to a class for every pixel, on mmseg's classes. `docs/design.md` says how these are extended."""

from .guided_attention import DAFStack, GuidedAttentionHead

__all__ = ["DAFStack", "GuidedAttentionHead"]
