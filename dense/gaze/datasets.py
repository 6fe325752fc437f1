"""Scanpaths of people in files, and the transform that cuts the objects out of a picture.

Items, before the transforms, are dict(image uint8 (H, W, 3), red, green, blue; boxes float (N, 4), x1, y1, x2, y2 in
pixels, row by row; target; path int64 (L,) of objects; person; name). Numbers in files count objects from 1, here from
0. The layouts are those that the preprocessing of github.com/HKUST-NISL/oat_eccv24 reads (commit 0c48c3e). The data
themselves were not available to us: the readers are tested on files that we wrote in that layout.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.logging import print_log

from ...data import Items, existing_root, one_of, positive
from ...files import near_files, printable
from ...images import read_image
from ...registry import DATASETS, TRANSFORMS
from .positions import cells_of_boxes

SPLITS = ("train", "val", "test", "all")


# --- objects of a picture --------------------------------------------------------------------------------------------


@TRANSFORMS.register_module()
class CutObjects:
    """A scene as it was read -> an item of a batch: crops uint8 (N, 3, h, w), of one size each, and perhaps cells.

    Args:
        size: height and width of crops.
        grid: rows and columns, on which boxes lie by their centers (`cells`); None where they lie row by row, as the
            network then takes them to.
        pad: columns that are added on both sides of the crops, of value 255, and are part of the size. The authors cut
            wine 51 wide, and add 21 on both sides.

    Raises:
        ValueError: no boxes, or NaN; a box of no pixels, or whose center lies outside; a target that is none of them.
    """

    def __init__(self, size: Sequence[int] = (150, 93), grid: Sequence[int] | None = None, pad: int = 0):
        self.size = (positive("CutObjects.size", size[0]), positive("CutObjects.size", size[1]))
        self.grid = None if grid is None else (positive("grid", grid[0]), positive("grid", grid[1]))
        if isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= 2 * pad < self.size[1]:
            raise ValueError(f"CutObjects.pad is {pad!r}; it must be from 0 to less than half of {self.size[1]}.")
        self.pad = pad

    def __call__(self, data: Mapping[str, Any]) -> dict:
        image, boxes = data["image"], np.asarray(data["boxes"], np.float64)
        height, width = image.shape[:2]
        if not boxes.size:
            raise ValueError("the scene has no objects (boxes).")
        cells = cells_of_boxes(torch.from_numpy(boxes), (height, width), *(self.grid or (1, 1)))
        target = data["target"]
        if isinstance(target, bool) or not isinstance(target, (int, np.integer)) or not 0 <= target < len(boxes):
            raise ValueError(f"target is {target!r}; it must be the number of a box, from 0 to {len(boxes) - 1}.")
        inside = (self.size[1] - 2 * self.pad, self.size[0])
        crops = np.full((len(boxes), *self.size, 3), 255, np.uint8)
        edges = np.round(np.clip(boxes, 0, [width, height, width, height])).astype(int)
        for number, (crop, (x1, y1, x2, y2)) in enumerate(zip(crops, edges)):
            if x2 <= x1 or y2 <= y1:
                raise ValueError(f"box {number} ({', '.join(f'{side:g}' for side in boxes[number])}) holds no pixel.")
            crop[:, self.pad : self.pad + inside[0]] = cv2.resize(image[y1:y2, x1:x2], inside)
        item = dict(crops=torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous(), target=int(target))
        if self.grid is not None:
            item["cells"] = cells
        if data.get("path") is not None:
            item["path"] = torch.as_tensor(data["path"], dtype=torch.int64)
        return item | ({"name": data["name"]} if "name" in data else {})


def objects_of_points(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The object of each fixation: the first box that holds the point, its edges included, else the box of the nearest
    center.

    Args:
        points: (L, 2), x and y in pixels.
        boxes: (N, 4), x1, y1, x2, y2.

    Returns:
        int64 (L,).

    Raises:
        ValueError: no points, no boxes, or NaN.
    """
    points, boxes = np.asarray(points, np.float64), np.asarray(boxes, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"fixations are {points.shape}; there must be one at least, of finite x and y.")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise ValueError(f"boxes are {boxes.shape}; there must be one at least, (N, 4).")
    x, y = points[:, :1], points[:, 1:]
    inside = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearest = np.linalg.norm(points[:, None] - centers, axis=-1).argmin(1)
    return np.where(inside.any(1), inside.argmax(1), nearest)


# --- files -----------------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """A scanpath of a person: the picture's file, boxes, target, objects from 0, and the person."""

    image: Path
    boxes: np.ndarray
    target: int
    path: list[int]
    person: str


class Trials(Items):
    """Base of the data sets of files.

    Args:
        trials: all scanpaths, in the order in which they are numbered.
        index: file with a number of a trial in each line, the order in which splits are taken: the first 80 % to train,
            then 10 % for validation, and 10 % to test. Without it the trials are taken in their own order.
        longest: deviations from the mean length, from which on a path is left out; 3 as of the authors, None for all.
            They say so of book covers, and count before they split.
    """

    def __init__(self, split, trials: list[Trial], index, longest, transforms, seed: int):
        name = type(self).__name__
        one_of(f"{name}.split", split, SPLITS)
        if longest is not None and not longest > 0:
            raise ValueError(f"{name}.longest is {longest!r}; it must be a positive number, or None.")
        if longest is not None and trials:
            lengths = np.array([len(trial.path) for trial in trials])
            kept = np.abs(lengths - lengths.mean()) <= longest * lengths.std()
            if not kept.all():
                print_log(f"{name}: {(~kept).sum()} of {len(kept)} paths left out for their length.", logger="current")
            trials = [trial for trial, keep in zip(trials, kept) if keep]
        if index is not None:
            trials = [trials[number] for number in read_index(index, len(trials))]
        first, second = int(0.8 * len(trials)), int(0.9 * len(trials))
        parts = dict(train=slice(0, first), val=slice(first, second), test=slice(second, None), all=slice(None))
        self.trials = trials[parts[split]]
        super().__init__(split, len(self.trials), (), transforms, seed)

    def name(self, item: int) -> str:
        trial = self.trials[item]
        return f"{trial.image.name}, {printable(trial.person)}"

    def get(self, item: int) -> dict:
        trial = self.trials[item]
        return dict(
            image=_image(trial.image).copy(),
            boxes=trial.boxes,
            target=trial.target,
            path=np.array(trial.path, np.int64),
            person=trial.person,
            name=self.name(item),
        )


@lru_cache(maxsize=8)  # the people who saw a picture often follow each other
def _image(path: Path) -> np.ndarray:
    return read_image(path)


def read_index(path: str | Path, count: int) -> list[int]:
    """Numbers of trials, each once, from the lines of a file.

    Raises:
        ValueError: a line is no number of a trial, or one is there twice.
    """
    lines = Path(path).read_text(encoding="utf-8").split()
    if not all(line.isdigit() for line in lines):
        wrong = next(line for line in lines if not line.isdigit())
        raise ValueError(f"{path}: {printable(wrong)} is no number of a trial.")
    numbers = [int(line) for line in lines]
    if len(set(numbers)) != len(numbers) or (numbers and max(numbers) >= count):
        raise ValueError(f"{path}: it must hold numbers from 0 to {count - 1}, each once; there are {count} trials.")
    return numbers


def mask_boxes(mask: np.ndarray) -> np.ndarray:
    """The boxes (N, 4) of the white parts of a mask uint8 (H, W, 3) or (H, W), row by row: ordered by the tens of
    pixels of their upper edge, then from the left."""
    grey = mask if mask.ndim == 2 else cv2.cvtColor(mask, cv2.COLOR_RGB2GRAY)
    contours, _ = cv2.findContours((grey > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    found = sorted((cv2.boundingRect(contour) for contour in contours), key=lambda box: (box[1] // 10, box[0]))
    return np.array([(x, y, x + w, y + h) for x, y, w, h in found], np.float64).reshape(-1, 4)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with others (N, 4)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(min=0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)


@DATASETS.register_module()
class BookCovers(Trials):
    """Amazon book covers (the STI data set of DFKI, as the authors of OAT have it): 84 covers in 6 rows of 14.

    Layout of `root`: amazon_data.json, {image: {"ground_truth": [{"xmin", "ymin", "xmax", "ymax"}], "fixations":
    {person: [[x, y], ...]}, ...}}; images/<image>; binarymask/14x6-<image>, white where a cover is. The target is the
    cover that overlaps the most with the ground truth.
    """

    LAYOUT = "amazon_data.json, images/ and binarymask/14x6-<image>."

    def __init__(
        self, root: str | Path, split: str = "train", transforms=(), index=None, longest: float | None = 3, seed=0
    ):
        folder = existing_root("BookCovers", root, self.LAYOUT)
        table = folder / "amazon_data.json"
        if not table.is_file():
            raise FileNotFoundError(f"BookCovers: {table} does not exist. {near_files(table)}")
        trials = []
        for name, found in json.loads(table.read_text(encoding="utf-8")).items():
            mask = folder / "binarymask" / f"14x6-{name}"
            boxes = mask_boxes(read_image(mask))
            try:
                truth = np.array([found["ground_truth"][0][side] for side in ("xmin", "ymin", "xmax", "ymax")], float)
                paths = {person: objects_of_points(points, boxes) for person, points in found["fixations"].items()}
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ValueError(f"{table}: {printable(name)}: {printable(error)}") from error
            overlaps = _overlaps(truth, boxes)
            if not overlaps.max() > 0:
                raise ValueError(f"{table}: {printable(name)}: the ground truth overlaps with no cover of {mask.name}.")
            target = int(overlaps.argmax())
            trials += [Trial(folder / "images" / name, boxes, target, p.tolist(), who) for who, p in paths.items()]
        super().__init__(split, trials, index, longest, transforms, seed)


class Layout(NamedTuple):
    """A shelf whose cells stand at the bottom of its picture."""

    question: str  # how names of its pictures begin
    rows: int
    columns: int
    height: int  # of a cell, in pixels
    width: int


LAYOUTS = dict(
    wine=Layout("Q1", 2, 11, 449, 152),
    shampoo=Layout("Q2", 3, 9, 295, 186),
    yogurt=Layout("Q3", 3, 9, 305, 186),
)
COLUMNS = ("ID", "Sub_ID", "Question", "T_Package", "Choice")


@DATASETS.register_module()
class ShelfQuestions(Trials):
    """Shelves of wine, shampoo or yogurt, of the authors of OAT.

    Layout of `root`: fixations.csv, a line for each fixation in order, with the columns ID (of the trial), Sub_ID,
    Question (name of the picture), T_Package (the target) and Choice (the object that is looked at), which the authors'
    tables have as Excel files: save these as one CSV (UTF-8, commas). img/Question/<Question>.png: the rows of the
    shelf stand at the lower edge of the picture, in cells of a fixed size from the left edge (`LAYOUTS`).

    Args:
        shelf: 'wine', 'shampoo' or 'yogurt'.
        longest: as of `Trials`; the authors do not say that they leave out paths here.
    """

    LAYOUT = "fixations.csv and img/Question/<Question>.png."

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transforms=(),
        shelf: str = "yogurt",
        index=None,
        longest: float | None = None,
        seed: int = 0,
    ):
        folder = existing_root("ShelfQuestions", root, self.LAYOUT)
        layout = LAYOUTS[one_of("ShelfQuestions.shelf", shelf, tuple(LAYOUTS))]
        table = folder / "fixations.csv"
        if not table.is_file():
            raise FileNotFoundError(f"ShelfQuestions: {table} does not exist. {near_files(table)}")
        looks: dict[str, list[dict[str, str]]] = {}
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise ValueError(f"{table} lacks the columns {', '.join(lacking)}.")
            for row in reader:
                if row["Question"].startswith(layout.question):
                    looks.setdefault(row["ID"], []).append(row)
        objects = layout.rows * layout.columns
        trials = []
        for trial, rows in looks.items():
            image = folder / "img" / "Question" / f"{rows[0]['Question']}.png"
            try:
                path = [int(float(row["Choice"])) - 1 for row in rows]
                target = int(float(rows[0]["T_Package"])) - 1
            except (OverflowError, TypeError, ValueError) as error:
                raise ValueError(f"{table}: trial {printable(trial)}: {printable(error)}") from error
            if not all(0 <= place < objects for place in (*path, target)):
                raise ValueError(
                    f"{table}: trial {printable(trial)} names an object outside the shelf, whose {objects} objects "
                    "count from 1."
                )
            trials.append(Trial(image, self.boxes(layout), target, path, rows[0]["Sub_ID"]))
        super().__init__(split, trials, index, longest, transforms, seed)

    @staticmethod
    def boxes(layout: Layout, bottom: int = 1050) -> np.ndarray:
        """The cells (N, 4) of a shelf, row by row, in pixels of a picture that is `bottom` pixels high."""
        row, column = np.divmod(np.arange(layout.rows * layout.columns), layout.columns)
        top = bottom - layout.rows * layout.height + row * layout.height
        left = column * layout.width
        return np.stack([left, top, left + layout.width, top + layout.height], 1).astype(np.float64)
