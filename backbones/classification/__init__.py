"""Classifying images on MMEngine: the model, data sets, transforms and pictures of the built-in furniture.

Imported when a config names one of them, not by `attlas.backbones`: it takes OpenCV.
"""

from . import datasets, model, prompting, sparsifying, transforms, views

__all__ = ["datasets", "model", "prompting", "sparsifying", "transforms", "views"]
