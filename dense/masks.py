"""Masks as COCO's run lengths."""

from collections.abc import Mapping

import numpy as np
from pycocotools import mask as runs


def encoded(mask: np.ndarray) -> dict:
    """A mask (H, W) as COCO's run lengths, of JSON's types."""
    found = runs.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=[int(side) for side in found["size"]], counts=found["counts"].decode("ascii"))


def decoded(mask: Mapping) -> np.ndarray:
    """The mask (H, W), of booleans, of run lengths."""
    return runs.decode(dict(mask)).astype(bool)
