"""Masks as COCO's run lengths and polygons."""

from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as runs


def encoded(mask: np.ndarray) -> dict:
    """A mask (H, W) as COCO's run lengths, of JSON's types."""
    found = runs.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=[int(side) for side in found["size"]], counts=found["counts"].decode("ascii"))


def decoded(mask: Mapping) -> np.ndarray:
    """The mask (H, W), of booleans, of run lengths."""
    return runs.decode(dict(mask)).astype(bool)


def rasterized(segmentation: Mapping | Sequence, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W), of booleans, of a COCO annotation's `segmentation`.

    Args:
        segmentation: polygons [[x1, y1, x2, y2, ...], ...] in pixels, or run lengths, compressed or not.
        size: height and width of the image.
    """
    if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], (str, bytes)):
        return decoded(segmentation)
    found = runs.frPyObjects(segmentation, *size)
    return decoded(runs.merge(found) if isinstance(found, list) else found)
