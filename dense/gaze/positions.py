"""Where an object of a scene is, as numbers for a network: cells of a grid, and tables of their encodings.

A place is a triple (row, column, flag), the flag being 1 for the object that is searched. Three ways from triples to
features: `learned` tables, in which the cosine of two positions falls with their distance as a Gaussian, and sinusoids
in four spacings of their frequencies. Source: OAT (ECCV 2024, arXiv 2407.13335), github.com/HKUST-NISL/oat_eccv24.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import check_seed, one_of, positive

FLAGS = 2
SPACINGS: dict[str, Callable[[Tensor, int, float], Tensor]] = dict(  # of steps 0, 2, ... of `channels` to frequencies
    original=lambda step, channels, alpha: 10000 ** (-step / channels),
    exp1=lambda step, channels, alpha: step**alpha / channels,
    exp2=lambda step, channels, alpha: (step / channels) ** alpha,
    linear=lambda step, channels, alpha: step * alpha / channels,
)
KINDS = ("learned", *SPACINGS)


# --- cells of a grid -------------------------------------------------------------------------------------------------


def cells_of_boxes(boxes: Tensor, size: Sequence[float], rows: int, columns: int) -> Tensor:
    """The cells of a grid over a picture in which the centers of boxes lie. Several may lie in one cell.

    Args:
        boxes: (N, 4), x1, y1, x2, y2 in pixels, such as those of a detector.
        size: height and width of the picture in pixels.
        rows, columns: of the grid.

    Returns:
        int64 (N, 2), row and column, from 0.

    Raises:
        ValueError: no boxes of that form, NaN, or a center outside the picture (says which).
    """
    height, width = size
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes are {tuple(boxes.shape)}; they must be (N, 4): x1, y1, x2, y2 in pixels.")
    if not (height > 0 and width > 0):
        raise ValueError(f"size is {tuple(size)}; height and width must be positive.")
    boxes = boxes.double()
    centers = torch.stack([(boxes[:, 1] + boxes[:, 3]) / (2 * height), (boxes[:, 0] + boxes[:, 2]) / (2 * width)], 1)
    inside = ((centers >= 0) & (centers <= 1)).all(1)  # false of NaN
    if not inside.all():
        number = int((~inside).nonzero()[0])
        raise ValueError(
            f"the center of box {number} ({', '.join(f'{side:g}' for side in boxes[number].tolist())}) lies outside "
            f"the picture of {width:g} x {height:g} pixels."
        )
    grid = torch.tensor([positive("rows", rows), positive("columns", columns)], device=boxes.device)
    return torch.minimum((centers * grid).long(), grid - 1)


# --- tables ----------------------------------------------------------------------------------------------------------


def gaussian_similarity(positions: int, sigma: float = 2.0) -> Tensor:
    """exp(-(i - j)^2 / (2 sigma^2)) of the positions i, j of an axis: float64 (positions, positions)."""
    positive("positions", positions)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma is {sigma!r}; it must be a positive number, in positions.")
    place = torch.arange(positions, dtype=torch.float64, device="cpu")
    return (-(place[:, None] - place).square() / (2 * sigma**2)).exp()


def gaussian_table(positions: int, channels: int, sigma: float = 2.0) -> Tensor:
    """A table whose rows have the cosines of `gaussian_similarity`, and equal norms: the exact minimum, in closed form,
    of what `learn_table` goes down to. It is the symmetric root of the similarities, filled up with zeros.

    Args:
        positions: rows; positions along the longer axis of a grid.
        channels: columns; at least as many as there are positions.
        sigma: reach of the similarity, in positions.

    Returns:
        float32 (positions, channels); the norm of each row is sqrt(channels), as of standard normal numbers.

    Raises:
        ValueError: fewer channels than positions, or bad numbers.
    """
    if positive("channels", channels) < positions:
        raise ValueError(
            f"{channels} channels hold the exact cosines of at most {channels} positions, and there are {positions}: "
            "take a larger dim, or a table of `learn_table`, which comes as near as it can."
        )
    values, vectors = torch.linalg.eigh(gaussian_similarity(positions, sigma))
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return F.pad(math.sqrt(channels) * root, (0, channels - positions)).float()


def learn_table(
    positions: int, channels: int, sigma: float = 2.0, steps: int = 10_000, lr: float = 0.01, seed: int = 0
) -> Tensor:
    """A table learned as the authors learn theirs: rows of standard normal numbers, of which Adam lessens the squared
    errors of the cosines against `gaussian_similarity`, summed over all pairs, plus the variance of the norms.

    Args:
        positions, channels: rows and columns of the table; at least 2 positions.
        sigma: reach of the similarity, in positions.
        steps, lr: of Adam.
        seed: of the first rows.

    Returns:
        float32 (positions, channels).
    """
    if positive("positions", positions) < 2:
        raise ValueError(f"positions is {positions}; there must be at least 2 to compare.")
    target = gaussian_similarity(positions, sigma).float()
    generator = torch.Generator().manual_seed(check_seed(seed))
    table = torch.randn(positions, positive("channels", channels), generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([table], lr=lr)
    for _ in range(positive("steps", steps)):
        norms = table.norm(dim=1)
        rows = table / norms[:, None]
        error = (rows @ rows.T - target).square().sum() + norms.var()
        optimizer.zero_grad()
        (error / (positions * (positions - 1))).backward()
        optimizer.step()
    return table.detach()


def read_table(table: Any) -> Tensor:
    """A table (positions, channels) from numbers, or from a .npy file as the authors publish theirs.

    Raises:
        ValueError: it is no table, or holds NaN.
    """
    if isinstance(table, (str, Path)):
        found = np.load(Path(table).expanduser(), allow_pickle=False)
    else:
        found = np.asarray(table)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        raise ValueError(f"a position table is {found.dtype} {found.shape}; it must be finite numbers (positions, m).")
    return torch.from_numpy(found.astype(np.float32))


def sinusoid_table(rows: int, columns: int, channels: int, spacing: str = "original", alpha: float = 1.0) -> Tensor:
    """Sinusoids of row, column and flag, one after the other, cut to `channels`.

    Each axis has c' = 2 ceil(channels / 6) features, sine and cosine in turns, of the frequencies for s = 0, 2, ...:
    10000^(-s / c') ("original"), s^alpha / c' ("exp1"), (s / c')^alpha ("exp2") or s alpha / c' ("linear").

    Args:
        rows, columns: of the grid.
        channels: features of a place.
        spacing: one of `SPACINGS`.
        alpha: exponent or factor of the last three; that the default is 1 is our choice.

    Returns:
        float32 (rows, columns, 2, channels).
    """
    one_of("spacing", spacing, tuple(SPACINGS))
    each = 2 * math.ceil(positive("channels", channels) / 6)
    frequencies = SPACINGS[spacing](torch.arange(0, each, 2, dtype=torch.float64, device="cpu"), each, alpha)
    sizes = (positive("rows", rows), positive("columns", columns), FLAGS)
    parts = []
    for axis, count in enumerate(sizes):
        angles = torch.arange(count, device="cpu")[:, None] * frequencies
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
        shape = [count if other == axis else 1 for other in range(3)]
        parts.append(waves.view(*shape, each).expand(*sizes, each))
    return torch.cat(parts, -1)[..., :channels].float()


def step_sinusoids(steps: int, dim: int, like: Tensor) -> Tensor:
    """The sinusoids (steps, dim) of the places in a sequence, sine and cosine in turns, of base 10000; device and dtype
    of `like`."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(steps)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim].to(like)


class GridPositions(nn.Module):
    """Triples (row, column, flag) to features by a fixed table, which is no parameter and is in no checkpoint: the
    arguments make it. A place outside the table has zeros.

    With "learned", row, column and flag look up one table, and the three are put one after the other, cut to `dim`.

    Args:
        rows, columns: of the grid.
        dim: features of a place.
        kind: one of `KINDS`.
        positions: rows of the learned table, by default as many as the longer side of the grid; or rows and columns of
            a table of sinusoids, by default those of the grid. The authors' is of 3 and 11, whatever the grid.
        sigma: reach of the learned table's similarity; see `gaussian_table`, which makes it.
        table: another learned table (positions, m), m at least dim / 3: numbers, or the path of a .npy file.
        alpha: of sinusoids; see `sinusoid_table`.
    """

    table: Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        dim: int,
        kind: str = "learned",
        positions: int | Sequence[int] | None = None,
        sigma: float = 2.0,
        table: Any = None,
        alpha: float = 1.0,
    ):
        super().__init__()
        self.kind, self.dim = one_of("position", kind, KINDS), dim
        if kind != "learned" and table is not None:
            raise ValueError(f"table is given, and position={kind!r} looks up none; it is for position='learned'.")
        if positions is not None and isinstance(positions, int) != (kind == "learned"):
            wanted = "a number of rows" if kind == "learned" else "rows and columns, or None"
            raise ValueError(f"positions is {positions!r}; with position={kind!r} it must be {wanted}.")
        if kind != "learned":
            rows, columns = (rows, columns) if positions is None else positions  # type: ignore[misc]
            found = sinusoid_table(rows, columns, dim, kind, alpha)
        elif table is None:
            count: Any = max(rows, columns) if positions is None else positions
            found = gaussian_table(count, math.ceil(dim / 3), sigma)
        else:
            found = read_table(table)
            if 3 * found.shape[1] < dim:
                raise ValueError(f"the position table has {found.shape[1]} channels; it needs {math.ceil(dim / 3)}.")
        if kind == "learned":
            found = F.pad(found, (0, 0, 0, 1))  # the zeros of places outside
        self.register_buffer("table", found, persistent=False)

    def forward(self, triples: Tensor) -> Tensor:
        """(..., 3), whose fractions are cut off, to (..., dim)."""
        index = triples.long()
        if self.kind == "learned":
            return self.table[index.clamp(max=len(self.table) - 1)].flatten(-2)[..., : self.dim]
        sizes = index.new_tensor(self.table.shape[:3])
        row, column, flag = torch.minimum(index, sizes - 1).unbind(-1)
        return self.table[row, column, flag] * (index < sizes).all(-1, keepdim=True)
