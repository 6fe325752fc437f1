"""What is learned for places: a table of positions, and tokens that stand beside a map."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .patches import any_free


def table_of_file(table: Tensor, shape: Sequence[int], mode: str = "bicubic", **options) -> Tensor:
    """The table of a file (see `PositionTable`) as one of `shape` (1, C, h, w), resized by `resize_table` with `mode`
    and further options; as it is where it cannot be that."""
    dim, size = shape[1], tuple(shape[2:])
    if table.ndim == 3:
        side = math.isqrt(table.shape[1])
        grid = size if math.prod(size) == table.shape[1] else (side, side)
        if math.prod(grid) != table.shape[1]:
            return table  # of no grid: the loader reports the shapes
        table = table.mT.unflatten(2, grid)
    elif table.ndim == 4 and table.shape[1] != dim:
        table = table.permute(0, 3, 1, 2)
    return resize_table(table, size, mode, **options) if table.shape[:2] == tuple(shape[:2]) else table


def resize_table(
    table: Tensor, size: Sequence[int], mode: str = "bicubic", offset: float = 0.0, antialias: bool = False
) -> Tensor:
    """A map (1, C, h, w), resized to (1, C, *size).

    Args:
        table: map to resize.
        size: new height and width.
        mode: mode of `F.interpolate`.
        offset: what is added to the new sizes for the step from pixel to pixel, h / (size + offset). DINOv2's authors
            have 0.1, so that rounding could not lose a row. Then the mode is "bicubic", without antialiasing.
        antialias: whether a smaller map is an average.
    """
    if not any_free(size) and tuple(table.shape[-2:]) == tuple(size):
        return table
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    if offset:
        down, along = (_bicubic(new, old, old / (new + offset), wide) for new, old in zip(size, table.shape[-2:]))
        return (down @ wide @ along.mT).to(table.dtype)
    return F.interpolate(wide, tuple(size), mode=mode, antialias=antialias).to(table.dtype)


def _bicubic(new: int, old: int, step: float, like: Tensor) -> Tensor:
    """The matrix (new, old) of PyTorch's bicubic interpolation of one axis, with a step of its own from place to place.
    `F.interpolate` takes such a step, but an export with free sizes would fix it."""
    place = (torch.arange(new, dtype=like.dtype, device=like.device) + 0.5) * step - 0.5
    matrix = like.new_zeros(1)
    for tap in (-1, 0, 1, 2):
        source = place.floor() + tap
        x = (place - source).abs()
        near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
        columns = torch.arange(old, device=like.device) == source.clamp(0, old - 1)[:, None]
        matrix = matrix + columns * torch.where(x <= 1, near, far)[:, None]
    return matrix


class PositionTable(nn.Module):
    """x + a learned map, which is resized to the size of x.

    Args:
        dim: channels C.
        size: height and width of the table; one number for both.
        mode: how it is resized: "bicubic" or "bilinear", without antialiasing, as the authors of the networks do.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Tables of the authors load as (1, h · w, C), (1, C, h, w) or (1, h, w,
    C), and are resized where theirs has another size; the rows of a table (1, N, C) of another size than this one are
    taken for those of a square. A table (1, C, C, C) is taken for (1, C, h, w). A row for a class token must have been
    taken off.
    """

    no_weight_decay = ("weight",)

    def __init__(self, dim: int, size: int | Sequence[int], mode: str = "bicubic"):
        super().__init__()
        if mode not in ("bicubic", "bilinear"):
            raise ValueError(f"PositionTable: mode={mode!r} must be 'bicubic' or 'bilinear'")
        height, width = (size, size) if isinstance(size, int) else size
        self.mode = mode
        self.weight = nn.Parameter(torch.empty(1, dim, height, width))
        self.reset_weights()

    def reset_weights(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    @property
    def checkpoint_resize(self) -> dict[str, Callable]:
        return {"weight": partial(table_of_file, mode=self.mode)}

    def forward(self, x: Tensor) -> Tensor:
        return x + resize_table(self.weight, x.shape[-2:], self.mode)


class ClassPositionTable(nn.Module):
    """A learned table of one row for a class token and one for every pixel, as ViT and DeiT have it.

    Args:
        dim: channels C.
        size: height and width of the map of the pixels; one number for both.
        offset, antialias: as of `resize_table`.

    `forward(x (B, C, H, W)) -> (B, C, H, W)` adds the rows of the pixels, resized bicubically; `row` (1, 1, C) is that
    of the token. The `weight` is (1, 1 + h · w, C). The rows of the pixels in a file are resized where theirs are
    another number, and then taken for those of a square. Files whose rows are of no such number are refused.
    """

    no_weight_decay = ("weight",)

    def __init__(
        self,
        dim: int,
        size: int | Sequence[int],
        offset: float = 0.0,
        antialias: bool = False,
    ):
        super().__init__()
        if offset and antialias:
            raise ValueError(f"ClassPositionTable: offset={offset} and antialias=True: give one of them")
        height, width = (size, size) if isinstance(size, int) else size
        self.size = (height, width)
        self.resizing: dict[str, Any] = dict(offset=offset, antialias=antialias)
        self.weight = nn.Parameter(torch.empty(1, 1 + height * width, dim))
        self.reset_weights()

    def reset_weights(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    @property
    def checkpoint_resize(self) -> dict[str, Callable]:
        return {"weight": self._of_file}

    def _of_file(self, table: Tensor, shape: Sequence[int]) -> Tensor:
        if table.ndim == 2:
            table = table[None]
        if table.ndim != 3:
            return table  # of no rows: the loader reports the shapes
        rows = table_of_file(table[:, 1:], (1, shape[2], *self.size), **self.resizing)
        return table if rows.ndim == 3 else torch.cat([table[:, :1], rows.flatten(2).mT], dim=1)

    @property
    def row(self) -> Tensor:
        return self.weight[:, :1]

    def forward(self, x: Tensor) -> Tensor:
        return x + resize_table(self.weight[:, 1:].mT.unflatten(2, self.size), x.shape[-2:], **self.resizing)


class Tokens(nn.Module):
    """Learned tokens, the same for every image.

    Args:
        count: number of tokens T.
        dim: channels C.

    `forward(batch) -> (batch, T, C)`.
    """

    no_weight_decay = ("weight",)

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, count, dim))
        self.reset_weights()

    def reset_weights(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, batch: int) -> Tensor:
        return self.weight.expand(batch, -1, -1)
