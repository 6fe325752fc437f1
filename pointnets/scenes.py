"""Scenes as point clouds: S3DIS in its published layout, clouds of your own, and the blocks that networks see of them.

A block is a column of `size` by `size` meters in plan, of the whole height: its points are given relative to the middle
of the column in plan and to the lowest point of the scene. Or it is a ball of diameter `size` around one of the points,
relative to which the others are given; balls turn with the scene, and columns do not.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from ..data import SPLITS, UP_AXES, existing_root, folders, one_of, positive
from ..files import near_files, printable
from ..kernels import farthest_point_sample
from ..registry import DATASETS, TRANSFORMS
from .datasets import PointClouds, ShapeFiles, check_point_labels
from .formats import read_text
from .shapes import Shape, check_shape
from .transforms import RandomPoints, select

SHAPES = ("column", "ball")
MANY_BLOCKS, FILLED = 1000, 64  # so many blocks, filled up to so many times their points, are a wrong unit


def plan_axes(up: str) -> list[int]:
    """The numbers of the two axes that are not up."""
    return [axis for axis, share in enumerate(UP_AXES[up]) if not share]


def block_origin(points: Tensor, middle: Tensor, up: str) -> Tensor:
    """Where a block has its origin (3,): its middle (2,) in plan, and the height of the scene's lowest point."""
    origin = points.amin(0)
    origin[plan_axes(up)] = middle
    return origin


def blocks(
    points: Tensor, size: float, overlap: int = 2, up: str = "z", least: int = 512
) -> Iterator[tuple[Tensor, Tensor]]:
    """The blocks that together hold all points of a scene: numbers of points (K,), and the origin (3,) of each.

    They begin at every 1 / `overlap` of their size, so that a point inside is in overlap² of them. One that has fewer
    than `least` points also gets those that are nearest to its middle in plan, as many as there are.

    Args:
        points: a scene (M, 3), on the CPU.
        size: side of a block, in the unit of the points.
        overlap: blocks that lie over a point along an axis.
        up: the axis that is not in plan.
        least: points that a block has at least, where the scene has as many.

    Raises:
        ValueError: the scene is far too wide for its points, as one in another unit or with an outlier may be.
    """
    plan = points[:, plan_axes(up)].double()
    low = plan.amin(0)
    places = ((plan - low) / (size / overlap)).floor()
    if places.max() >= 2**30:
        raise ValueError(f"{_few_in_blocks(plan, size)}: does some point lie far outside?")
    cells = places.long()
    rows, columns = (cells.amax(0) + 1).tolist()
    key, order = (cells[:, 0] * columns + cells[:, 1]).sort(stable=True)
    occupied = key.unique_consecutive()
    steps = torch.arange(overlap)
    starts = [  # of the blocks over each occupied cell, along each axis
        (cell.view(-1, 1) - steps).clamp(0, max(count - overlap, 0))
        for cell, count in ((occupied // columns, rows), (occupied % columns, columns))
    ]
    corners = (starts[0].unsqueeze(2) * columns + starts[1].unsqueeze(1)).unique()
    runs = corners.view(-1, 1) + steps * columns  # the first cell of each row of cells of a block
    begin = torch.searchsorted(key, runs)
    end = torch.searchsorted(key, runs + min(overlap, columns))
    if len(corners) > MANY_BLOCKS and FILLED * int((end - begin).sum()) < least * len(corners):
        raise ValueError(
            f"{_few_in_blocks(plan, size)}: each of {len(corners):,} would be filled up to {least:,} points, from "
            f"{(end - begin).sum() / len(corners):.1f} on average. Is the scene in the unit of the blocks?"
        )
    for corner, first, last in zip(corners.tolist(), begin.tolist(), end.tolist()):
        found = torch.cat([order[i:j] for i, j in zip(first, last)])
        middle = low + size * (torch.tensor(divmod(corner, columns), dtype=torch.float64) / overlap + 0.5)
        if len(found) < least:
            distance = (plan - middle).square().sum(1)
            distance[found] = -1
            found = distance.topk(min(least, len(points)), largest=False).indices
        yield found, block_origin(points, middle.to(points.dtype), up)


def _few_in_blocks(plan: Tensor, size: float) -> str:
    """Beginning of a sentence on a scene (M, 2) that is too wide for its blocks."""
    width, depth = (plan.amax(0) - plan.amin(0)).tolist()
    return f"its {len(plan):,} points lie in {width:.4g} x {depth:.4g} in plan, too wide for blocks of side {size:g}"


def balls(points: Tensor, size: float, overlap: int = 2, least: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
    """The balls that together hold all points of a scene: numbers of points (K,), and the center (3,) of each.

    Centers are points, each the farthest from those before it, from the first point of the scene on, until no point is
    farther from them than half of `size` over `overlap`. However the scene is turned, they are the same but for
    rounding. A ball that has fewer than `least` points gets those that are nearest to its center, as many as there are.

    Args:
        points: a scene (M, 3), on the CPU.
        size: diameter of a ball, in the unit of the points.
        overlap: radius of a ball over the distance at which centers cover the scene.
        least: points that a ball has at least, where the scene has as many.

    Raises:
        ValueError: the scene is far too wide for its points, as one in another unit or with an outlier may be.
    """
    reach, count = size / 2 / overlap, 32
    while True:
        count = min(2 * count, len(points))
        centers = points[farthest_point_sample(points[None], count)[0]]
        # how far the farthest point is from the centers before each
        left = torch.cdist(centers.double(), centers.double()).tril(-1)
        left = left.masked_fill(torch.ones_like(left).triu().bool(), torch.inf).amin(1)
        done = (left <= reach).nonzero()
        if len(done) or count == len(points):
            break
        if count > MANY_BLOCKS and FILLED * len(points) < least * count:
            raise ValueError(
                f"its {len(points):,} points are not covered by {count:,} balls of diameter {size:g}. Is the scene in "
                "the unit of the balls, and does some point lie far outside?"
            )
    for center in centers[: int(done[0])] if len(done) else centers:
        distance = (points - center).square().sum(1)
        found = (distance <= (size / 2) ** 2).nonzero().squeeze(1)
        if len(found) < least:
            found = distance.topk(min(least, len(points)), largest=False).indices
        yield found, center


@TRANSFORMS.register_module()
class RandomBlock(BaseTransform):
    """A block around a random point of a scene, about the block's origin (see `blocks`, `balls`).

    Args:
        size: side of the column, or diameter of the ball, in the unit of the points.
        num: number of points that are chosen, repeated where the block has fewer; None for all of them, which normals
            should be estimated on.
        up: the axis that is not in plan, of columns.
        least: points that a block should have: the fullest of ten that have fewer is taken.
        shape: "column" or "ball".
    """

    def __init__(
        self, size: float = 1.0, num: int | None = 4096, up: str = "z", least: int = 512, shape: str = "column"
    ):
        if not size > 0:
            raise ValueError(f"RandomBlock.size is {size!r}; it must be positive.")
        self.size, self.least = size, positive("RandomBlock.least", least)
        self.up, self.shape = one_of("RandomBlock.up", up, tuple(UP_AXES)), one_of("RandomBlock.shape", shape, SHAPES)
        self.choose = None if num is None else RandomPoints(num)

    def forward(self, data: Data) -> Data:
        ball = self.shape == "ball"
        plan = data.pos if ball else data.pos[:, plan_axes(self.up)]
        best, middle = torch.zeros(len(plan), dtype=torch.bool), plan[0]
        for _ in range(10):
            center = plan[int(torch.randint(len(plan), ()))]
            away = plan - center
            inside = (away.norm(dim=1) if ball else away.abs().amax(1)) <= self.size / 2
            if inside.sum() > best.sum():
                best, middle = inside, center
            if best.sum() >= self.least:
                break
        origin = middle if ball else block_origin(data.pos, middle, self.up)
        data = select(data, best.nonzero().squeeze(1))
        data = self.choose(data) if self.choose else data
        data.pos = data.pos - origin
        return data


@DATASETS.register_module()
class SegmentedClouds(ShapeFiles):
    """Your own clouds with labels of their points: `<root>/classes.txt` has the name of a class in each line, and
    `<root>/<split>/*.npz` hold `pos` (N, 3), perhaps `normal` (N, 3) and `color` (N, 3), and `point_label` (N,), which
    counts the lines from 0. Colors are integers of 0 to 255, and for pictures alone.

    Raises:
        FileNotFoundError: there are no names, or no clouds in the folder of the split.
        ValueError: two classes have one name; or names the file that cannot be read, or whose labels are of no class.
    """

    colors = True
    LAYOUT = "classes.txt beside train/<name>.npz and test/<name>.npz."

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0):
        one_of("SegmentedClouds.split", split, tuple(SPLITS))
        root = existing_root("SegmentedClouds", root, self.LAYOUT)
        listing = root / "classes.txt"
        if not listing.is_file():
            raise FileNotFoundError(f"{listing} is missing. Expected there: {self.LAYOUT}")
        classes = [line.strip() for line in listing.read_text().splitlines() if line.strip()]
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"{listing} must name each class once, in a line of its own; it has {len(classes)} lines.")
        paths = sorted(path for path in (root / split).glob("*.npz") if path.name[0] != ".")
        if not paths:
            raise FileNotFoundError(f"SegmentedClouds: {root / split} holds no .npz. Expected there: {self.LAYOUT}")
        self._of_files(paths, None)
        PointClouds.__init__(self, split, classes, [path.stem for path in paths], None, transforms, seed)

    def parse(self, item: int) -> Shape:
        shape = super().parse(item)
        path = self.paths[item]
        if "point_label" not in shape or "face" in shape:
            raise ValueError(f"{path}: arrays pos and point_label were expected, and got {', '.join(shape)}.")
        try:
            check_point_labels(shape["point_label"], range(len(self.classes)), "classes.txt")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return shape


@DATASETS.register_module()
class S3DIS(ShapeFiles):
    """Stanford 3D Indoor Spaces (Armeni et al., CVPR 2016): 272 scanned rooms in six areas, whose points are labelled
    with 13 classes; in meters, z is up. As published (Stanford3dDataset_v1.2_Aligned_Version), a room is the folder
    `Area_1/office_1/Annotations` of files `chair_1.txt`, one for each object, with a line x y z r g b for each point.

    Items are whole rooms with `point_label` (N,) and `color` (N, 3), which is for pictures alone, their points in the
    order of the files' names; they have no normals. Stairs, which are no class, count as clutter.

    Args:
        root: the folder of the areas.
        split: 'test', the rooms of the `test_area`; 'train', those of the others; or 'all'.
        test_area: number of an area; most papers test on 5.
        cache: a folder for what was parsed; of the text files, some 6 GB.

    Raises:
        FileNotFoundError: there is no area, or an area without rooms.
        ValueError: names the file that is of no class, or is no table of six columns of finite numbers, the last three
            whole ones of 0 to 255. (In the release `Area_5/hallway_6/Annotations/ceiling_1.txt` holds a byte that is
            none of a number; replace it by a space.)
    """

    CLASSES = (
        "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
        "clutter",
    )  # fmt: skip
    colors = True
    ALSO = {"stairs": "clutter"}
    LAYOUT = "Area_1/office_1/Annotations/chair_1.txt and its siblings, of Area_1 to Area_6."

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0, test_area: int = 5, cache=None):
        one_of("S3DIS.split", split, ("train", "test", "all"))
        root = existing_root("S3DIS", root, self.LAYOUT)
        areas = [name for name in folders(root) if name.startswith("Area_")]
        tested = f"Area_{positive('S3DIS.test_area', test_area)}"
        if tested not in areas:
            raise FileNotFoundError(f"S3DIS: {root} has no folder {tested}. Expected there: {self.LAYOUT}")
        chosen = [area for area in areas if split == "all" or (area == tested) == (split == "test")]
        rooms = [root / area / room for area in chosen for room in folders(root / area)]
        self._of_files([room / "Annotations" for room in rooms], cache)
        names = [f"{room.parent.name}/{room.name}" for room in rooms]
        PointClouds.__init__(self, split, self.CLASSES, names, None, transforms, seed)

    def parse(self, item: int) -> Shape:
        folder = self.paths[item]
        files = sorted(path for path in folder.glob("*.txt") if path.name[0] != ".")
        if not files:
            raise FileNotFoundError(
                f"{folder} holds no .txt file of an object, such as chair_1.txt. {near_files(folder)}"
            )
        parts = [self._object(path) for path in files]
        labels = np.repeat([label for label, _ in parts], [len(table) for _, table in parts])
        table = np.concatenate([table for _, table in parts])
        return check_shape({"pos": table[:, :3], "point_label": labels, "color": table[:, 3:].astype(np.uint8)})

    def _object(self, path: Path) -> tuple[int, np.ndarray]:
        """The class of an object and its points with their colors (N, 6)."""
        name = path.stem.rpartition("_")[0]
        name = self.ALSO.get(name, name)
        if name not in self.CLASSES:
            raise ValueError(f"{path}: {printable(name)!r} is no class; these are {', '.join(self.CLASSES)}.")
        try:
            table, _ = read_text(path.read_bytes())
            if table.ndim != 2 or table.shape[1] != 6 or not len(table):
                raise ValueError(f"columns x y z r g b were expected, not an array of shape {table.shape}")
            if not np.isfinite(table).all():
                raise ValueError(f"row {int((~np.isfinite(table)).any(1).argmax()) + 1} holds NaN or infinite numbers")
            low, high = table[:, 3:].min(), table[:, 3:].max()
            if low < 0 or high > 255:
                raise ValueError(f"colors of 0 to 255 were expected, not {low:g} to {high:g}")
            if (broken := (table[:, 3:] % 1 != 0).any(1)).any():
                raise ValueError(f"row {int(broken.argmax()) + 1} holds a color that is no whole number")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return self.CLASSES.index(name), table
