"""From items of data sets to the arguments of a network of scanpaths, and what is checked on the way.

An item is dict(crops uint8 (N, 3, h, w), red, green, blue; target, the number of an object; path int64 (L,) of objects,
in the order in which they were looked at, where it is known; cells int64 (N, 2), rows and columns, where the objects do
not lie row by row; name).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ...data import one_of
from ...files import printable
from ...registry import MODELS

LEGACY = ("amazon", "shelf")


def check_crops(
    crops: Tensor,
    targets: Tensor,
    cells: Tensor | None,
    counts: Tensor | None,
    grid: tuple[int, int],
    crop: tuple[int, ...] | None,
) -> None:
    """Refuse scenes that a network cannot take; see `OAT.scene`. Values are looked at on a CPU alone, and not while
    tracing.

    Args:
        crops, targets, cells, counts: a batch.
        grid: rows and columns.
        crop: height and width that crops must have, or None.
    """
    if crops.ndim != 5 or crops.shape[2] != 3 or not crops.is_floating_point():
        raise ValueError(f"crops are {crops.dtype} {tuple(crops.shape)}; they must be floats (B, N, 3, h, w).")
    batch, most = crops.shape[:2]
    if not (batch and most):
        raise ValueError(f"crops are {tuple(crops.shape)}: there are no objects to look at.")
    if crop is not None and tuple(crops.shape[3:]) != crop:
        raise ValueError(
            f"crops are {crops.shape[3]} x {crops.shape[4]}; with spp=0 they must be {crop[0]} x {crop[1]}."
        )
    if min(crops.shape[3:]) < 19:
        raise ValueError(f"crops are {crops.shape[3]} x {crops.shape[4]}; each side must be at least 19 pixels.")
    if targets.shape != (batch,):
        raise ValueError(f"targets are {tuple(targets.shape)}; there must be one for each scene, ({batch},).")
    if counts is not None and counts.shape != (batch,):
        raise ValueError(f"counts are {tuple(counts.shape)}; there must be one for each scene, ({batch},).")
    if cells is None and most > grid[0] * grid[1]:
        raise ValueError(
            f"a scene has {most} objects, and the grid {grid[0]} x {grid[1]} cells: give the cells of the objects, or "
            "take a larger grid."
        )
    if cells is not None and cells.shape != (batch, most, 2):
        raise ValueError(f"cells are {tuple(cells.shape)}; they must be (B, N, 2), here {(batch, most, 2)}.")
    if crops.is_cuda or torch.compiler.is_compiling():
        return
    sizes = torch.full((batch,), most) if counts is None else counts
    if (sizes < 1).any() or (sizes > most).any():
        raise ValueError(f"counts are {sizes.tolist()}; each must be from 1 to {most}.")
    if (targets < 0).any() or (targets >= sizes).any():
        raise ValueError(f"targets are {targets.tolist()}, of scenes with {sizes.tolist()} objects, counted from 0.")
    for number, (scene, size) in enumerate(zip(crops, sizes.tolist())):
        if not torch.isfinite(scene[:size]).all():
            raise ValueError(f"crops of scene {number} hold NaN or infinite numbers.")
        if cells is not None:
            inside = ((cells[number, :size] >= 0) & (cells[number, :size] < torch.tensor(grid))).all(1)
            if not inside.all():
                place = int((~inside).nonzero()[0])
                raise ValueError(
                    f"object {place} of scene {number} lies in cell {cells[number, place].tolist()}, outside the grid "
                    f"of {grid[0]} x {grid[1]}."
                )


@MODELS.register_module()
class GazePreprocessor(BaseDataPreprocessor):
    """A collated batch of items -> the arguments of `OAT.forward`, on the model's device. Scenes of fewer objects are
    filled up.

    Args:
        legacy_scale: how the authors' weights want the numbers of crops, which here are in [0, 1]: "amazon", 0 to 255
            in the order blue, green, red; or "shelf", of each crop from its smallest number to its largest (yogurt and
            wine).

    Raises:
        ValueError: crops of several sizes, or that are no bytes; an empty path; a path to an object that is not there.
    """

    def __init__(self, legacy_scale: str | None = None, non_blocking: bool = False):
        super().__init__(non_blocking)
        self.legacy_scale = legacy_scale and one_of("legacy_scale", legacy_scale, LEGACY)

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict:
        scenes, names = list(data["crops"]), list(data.get("name") or ())
        called = [printable(names[i]) if names else f"scene {i}" for i in range(len(scenes))]
        for name, crops in zip(called, scenes):
            if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[1] != 3:
                raise ValueError(
                    f"{name}: crops are {crops.dtype} {tuple(crops.shape)}; they must be uint8 (N, 3, h, w)."
                )
            if not len(crops):
                raise ValueError(f"{name}: the scene has no objects.")
        sizes = sorted({tuple(crops.shape[2:]) for crops in scenes})
        if len(sizes) > 1:
            raise ValueError(f"the crops of a batch are of sizes {sizes}; they must have one.")
        counts = [len(crops) for crops in scenes]
        cells = data.get("cells")
        paths = data.get("path")
        if paths is not None:
            paths = [torch.as_tensor(path, dtype=torch.int64) for path in paths]
            for name, path, count in zip(called, paths, counts):
                check_path(name, path, count)
        batch: dict[str, Any] = dict(
            crops=self._scaled(_filled(scenes).to(self.device)),
            targets=torch.as_tensor(data["target"]).to(self.device),
            cells=None if cells is None else _filled(cells).to(self.device),
            counts=torch.tensor(counts, device=self.device) if len(set(counts)) > 1 else None,
        )
        return batch | dict(paths=paths, names=names or None)

    def _scaled(self, crops: Tensor) -> Tensor:
        crops = crops.float()
        if self.legacy_scale == "amazon":
            return crops.flip(2)
        if self.legacy_scale == "shelf":
            low, high = crops.amin((2, 3, 4), keepdim=True), crops.amax((2, 3, 4), keepdim=True)
            return (crops - low) / (high - low).clamp(min=1)
        return crops / 255


def check_path(name: str, path: Tensor, objects: int) -> None:
    """Refuse a path that is empty, or that leads to an object that is not there."""
    if path.ndim != 1 or not len(path):
        raise ValueError(f"{name}: the path is empty; a person looks at one object at least.")
    if (path < 0).any() or (path >= objects).any():
        raise ValueError(f"{name}: the path {path.tolist()} leads outside the scene of {objects} objects, 0 to N - 1.")


def _filled(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape but for their first size, stacked, filled up with zeros."""
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(part) for part in parts], batch_first=True)
