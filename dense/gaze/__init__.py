"""Gaze: the order in which a person looks at objects, on MMEngine."""

from .datasets import BookCovers, CutObjects, ShelfQuestions
from .metrics import ScanpathMetrics
from .oat import OAT
from .preprocessing import GazePreprocessor
from .shelves import FurnitureShelves

__all__ = [
    "OAT",
    "BookCovers",
    "CutObjects",
    "FurnitureShelves",
    "GazePreprocessor",
    "ScanpathMetrics",
    "ShelfQuestions",
]
