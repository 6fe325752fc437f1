"""Segmentation: maps to labels of pixels, on mmseg's classes. `docs/design.md` says how these are extended."""

from ..transforms import ReadImage
from .datasets import ADE20KMaps, CityscapesMaps, FurnishedRoomsMaps, SegmentationMaps
from .diversification import DiversifiedSegmentor
from .ffnet_seg import FFNetSegHead
from .guided_attention import DAFStack, GuidedAttentionHead
from .horfpn import GNUPerHead
from .linear_probe import LinearProbe
from .maps import ReadMap
from .medical import MedicalSlices, ReadSlice, VolumeDice
from .metrics import MapIoU
from .views import AveragedSegmentor

__all__ = [
    "ADE20KMaps",
    "AveragedSegmentor",
    "CityscapesMaps",
    "DAFStack",
    "DiversifiedSegmentor",
    "FFNetSegHead",
    "FurnishedRoomsMaps",
    "GNUPerHead",
    "GuidedAttentionHead",
    "LinearProbe",
    "MapIoU",
    "MedicalSlices",
    "ReadImage",
    "ReadMap",
    "ReadSlice",
    "SegmentationMaps",
    "VolumeDice",
]
