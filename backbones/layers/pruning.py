"""Fewer pixels: those that stay are gathered, so that what follows costs less, and come back on the grid in the end."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.dispatch import decompose


def keep_pixels(x: Tensor, index: Tensor) -> Tensor:
    """The pixels of a map at `index`, as a map of height 1, on which blocks run as on any other.

    Args:
        x: map (B, C, H, W).
        index: places (B, K), int64, in the rows of H · W pixels.

    Returns:
        (B, C, 1, K), in the order of `index`, in channels-last memory.
    """
    rows = x.flatten(2).transpose(1, 2)
    return rows.gather(1, index[..., None].expand(-1, -1, x.shape[1])).transpose(1, 2).unsqueeze(2)


def put_back(kept: Tensor, index: Tensor, onto: Tensor) -> Tensor:
    """A copy of the map `onto` (B, C, H, W) whose pixels at `index` (B, K) are those of `kept` (B, C, 1, K)."""
    rows = onto.flatten(2).transpose(1, 2)
    places = index[..., None].expand(-1, -1, onto.shape[1])
    rows = rows.scatter(1, places, kept.flatten(2).transpose(1, 2).to(onto.dtype))
    return rows.transpose(1, 2).unflatten(2, onto.shape[-2:])


class Pruned(NamedTuple):
    """Which pixels of the grid are left, and what stands at the others.

    Attributes:
        places: (B, K), of the pixels that are left, in the rows of H · W pixels of the grid.
        others: map (B, C, H, W) of the grid; a pixel that was dropped has the value there that it had last.
    """

    places: Tensor
    others: Tensor

    def grid(self, x: Tensor) -> Tensor:
        """The pixels that are left, (B, C, 1, K), on the grid, and those that were dropped as they were last."""
        return put_back(x, self.places, self.others)


def prune(x: Tensor, index: Tensor, before: Pruned | None = None) -> tuple[Tensor, Pruned]:
    """Drop all pixels of a map but those at `index`.

    Args:
        x: map (B, C, H, W), or (B, C, 1, N) if pixels were dropped before.
        index: places (B, K) in the rows of x.
        before: what an earlier call gave, if there was one.

    Returns:
        the pixels that are left, (B, C, 1, K), and where they belong. What is dropped stays dropped.
    """
    others, places = (x, index) if before is None else (before.grid(x), before.places.gather(1, index))
    return keep_pixels(x, index), Pruned(places, others)


def best(scores: Tensor, count: int) -> Tensor:
    """The places (B, count) of the highest of the scores (B, N), in rising order; of equal ones the first."""
    found = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]
    return found.sort(dim=1).values


def _stable_sort(x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False):
    """For ONNX, whose TopK, too, has the first of equal ones first. Its exporter knows no stable sort."""
    return torch.topk(x, x.shape[dim], dim, largest=descending)


decompose(torch.ops.aten.sort.stable, _stable_sort)
