"""Boxes of maps that images of a batch exchange."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def cut_box(height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """Rows [top, bottom) and columns [left, right) of a box with a `share` of the area around a uniform center, as far
    as it lies inside the map. The random numbers are NumPy's global ones."""
    half_height, half_width = (int(side * share**0.5) // 2 for side in (height, width))
    y, x = np.random.randint(height), np.random.randint(width)
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)


def swap_box(x: Tensor, box: Sequence[int]) -> Tensor:
    """The maps (B, C, H, W) of a batch, each with the box (see `cut_box`) of the one at the other end of the batch.
    Applied twice, it gives them back."""
    top, bottom, left, right = box
    swapped = x.clone()
    swapped[..., top:bottom, left:right] = x[..., top:bottom, left:right].flip(0)
    return swapped


def kept_share(height: int, width: int, box: Sequence[int]) -> float:
    """Share of a map outside of a box."""
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)
