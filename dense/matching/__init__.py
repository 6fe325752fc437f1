"""Matching: two images to the places of one in the other, on MMEngine.

Places are x and y in pixels of the images as they were given; the middle of the first pixel is at (0.5, 0.5).
"""

from .datasets import HPatches, PackMatches, PFPascal, RoomPairs, SPair71k
from .matcher import Matcher, MatchingPreprocessor
from .metrics import PCK, EndPointError
from .ufc import UFC, UFCLayer
from .warps import Frame, Warp, matches

__all__ = [
    "PCK",
    "UFC",
    "EndPointError",
    "Frame",
    "HPatches",
    "Matcher",
    "MatchingPreprocessor",
    "PFPascal",
    "PackMatches",
    "RoomPairs",
    "SPair71k",
    "UFCLayer",
    "Warp",
    "matches",
]
