"""The built-in scanpaths: shelves of furniture, searched by a stated model. No person looked at them.

The model is a searcher with a memory (`Search`). It is no theory of people: it makes paths whose law is known, so that
what a network learns can be held to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ...data import Items, one_of, positive
from ...registry import DATASETS

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Search:
    """A searcher. It begins in the middle of the shelf. After a look at the target it ends with the chance `stop`. Else
    it stays on the object with the chance `linger`, or goes on to another one, with chances in proportion to
    exp(-distance^2 / (2 reach^2)), times `likeness` where the object is of the class of the target, times `memory`
    where it was looked at before. After `most` looks it gives up.

    Args:
        reach: standard deviation of a step, in cells.
        likeness: factor of objects of the target's class.
        memory: factor of objects that were seen; 1 for a searcher without memory.
        linger, stop: chances.
        most: looks.
    """

    reach: float = 1.5
    likeness: float = 4.0
    memory: float = 0.1
    linger: float = 0.1
    stop: float = 0.9
    most: int = 24

    def __post_init__(self):
        positive("Search.most", self.most)
        for name in ("reach", "likeness", "memory"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"Search.{name} is {getattr(self, name)!r}; it must be a positive number.")
        for name in ("linger", "stop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Search.{name} is {getattr(self, name)!r}; it must lie in [0, 1].")

    def chances(
        self, cells: np.ndarray, alike: np.ndarray, target: int, path: Sequence[int], middle: Sequence[float]
    ) -> np.ndarray:
        """The law of the next look.

        Args:
            cells: (N, 2), rows and columns of the objects, at least two.
            alike: (N,) booleans, the objects of the target's class.
            target: number of the target.
            path: looks until now; none at the beginning.
            middle: row and column from which the search begins.

        Returns:
            float64 (N + 1,): the chances of the objects, and of the end.
        """
        chances = np.zeros(len(cells) + 1)
        if len(path) >= self.most:
            chances[-1] = 1
            return chances
        place = cells[path[-1]] if len(path) else np.asarray(middle)
        distance = np.square(cells - place).sum(1).astype(float)
        if len(path):
            distance[path[-1]] = np.inf
        weight = np.exp((distance.min() - distance) / (2 * self.reach**2)) * np.where(alike, self.likeness, 1)
        weight[np.unique(np.asarray(path, int))] *= self.memory
        linger = self.linger if len(path) else 0.0
        chances[:-1] = (1 - linger) * weight / weight.sum()
        if len(path):
            chances[path[-1]] = linger
            if path[-1] == target:
                chances *= 1 - self.stop
                chances[-1] = self.stop
        return chances

    def draw(self, random: np.random.Generator, *scene: Any) -> list[int]:
        """A path, for the arguments of `chances` without the path: cells, alike, target, and middle."""
        cells, alike, target, middle = scene
        path: list[int] = []
        while True:
            chances = self.chances(cells, alike, target, path, middle)
            choice = int(random.choice(len(chances), p=chances))
            if choice == len(cells):
                return path
            path.append(choice)


def furniture(split: str, **options: Any) -> Any:
    """The pictures that stand on shelves, with their `images` and `labels`."""
    from ...backbones.classification.views import FurnitureViews  # here, because all backbones come with it

    return FurnitureViews(split, **options)


@DATASETS.register_module()
class FurnitureShelves(Items):
    """Shelves of furniture seen by a camera (`FurnitureViews`), an object in each cell, with a target and a scanpath of
    `Search`. A shelf is a function of (split, seed, number). Items are dict(image uint8 (H, W, 3), boxes (N, 4) in
    pixels, target, path, name). Furniture to test on is in no shelf to train on.

    Args:
        size: number of shelves.
        rows, columns: of a shelf, at least two cells.
        cell: height and width of a cell in pixels.
        search: what `Search` takes, where it differs.
        views: what `FurnitureViews` takes besides, such as the `views` of a mesh, their `size`, and `cache`.
    """

    def __init__(
        self,
        split: str = "train",
        transforms=(),
        seed: int = 0,
        size: int = 2000,
        rows: int = 3,
        columns: int = 5,
        cell: Sequence[int] = (40, 40),
        search: Mapping[str, float] | None = None,
        views: Mapping[str, Any] | None = None,
    ):
        one_of("FurnitureShelves.split", split, SPLITS)
        if positive("rows", rows) * positive("columns", columns) < 2:
            raise ValueError("a shelf of one object leaves nothing to search; rows or columns must be at least 2.")
        super().__init__(split, positive("FurnitureShelves.size", size), (), transforms, seed)
        self.views = furniture(split, **(views or {}))
        self.rows, self.columns, self.cell = rows, columns, (positive("cell", cell[0]), positive("cell", cell[1]))
        self.search = Search(**(search or {}))  # type: ignore[arg-type]

    def scene(self, item: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray, list[int]]:
        """Views (N,), cells (N, 2), whether objects are of the target's class (N,), target, middle, and path."""
        random = np.random.default_rng([SPLITS.index(self.split), self.seed, item])
        chosen = random.choice(len(self.views.labels), self.rows * self.columns, replace=False)
        cells = np.stack(np.divmod(np.arange(len(chosen)), self.columns), 1)
        target = int(random.integers(len(chosen)))
        labels = self.views.labels[chosen]
        alike, middle = labels == labels[target], np.array([self.rows - 1, self.columns - 1]) / 2
        return chosen, cells, alike, target, middle, self.search.draw(random, cells, alike, target, middle)

    def get(self, item: int) -> dict:
        chosen, cells, _, target, _, path = self.scene(item)
        height, width = self.cell
        image = np.empty((self.rows * height, self.columns * width, 3), np.uint8)
        boxes = np.concatenate([cells[:, ::-1], cells[:, ::-1] + 1], 1) * [width, height, width, height]
        for view, (x1, y1, x2, y2) in zip(chosen, boxes):
            picture = np.asarray(self.views.images[view])
            image[y1:y2, x1:x2] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        name = f"shelf {item} ({self.split})"
        return dict(image=image, boxes=boxes.astype(float), target=target, path=np.array(path), name=name)
