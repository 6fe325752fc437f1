"""Segmentation: maps to a class for every pixel, on mmseg's classes. `docs/design.md` says how these are extended."""

from .guided_attention import DAFStack, GuidedAttentionHead
from .medical import MedicalSlices, ReadSlice, VolumeDice

__all__ = ["DAFStack", "GuidedAttentionHead", "MedicalSlices", "ReadSlice", "VolumeDice"]
