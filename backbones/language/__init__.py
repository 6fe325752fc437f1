"""The room of language: text files as bytes, a model that predicts the next byte, bits per byte, and generation.

Imported when a config names one of them, not by `attlas.backbones`.
"""

from . import datasets, metrics, model
from .generation import generate, stream

__all__ = ["datasets", "generate", "metrics", "model", "stream"]
