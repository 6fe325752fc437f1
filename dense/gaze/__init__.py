"""Gaze: the order in which a person looks at objects, on MMEngine."""

from .metrics import ScanpathMetrics
from .oat import OAT
from .preprocessing import GazePreprocessor

__all__ = ["OAT", "GazePreprocessor", "ScanpathMetrics"]
