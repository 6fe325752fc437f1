"""Pairs of images with known matches: views of the built-in rooms, PF-PASCAL, SPair-71k, HPatches.

Every data set serves dict(source, target, source_points, target_points, ...): images uint8 (3, H, W), red, green, blue,
of their own sizes; known matches float32 (K, 2), x and y in pixels, where the middle of the first pixel is at
(0.5, 0.5). Draws are repeatable (`attlas.data.Items`). Masks are not needed here; see `MatchingPreprocessor`.
"""

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import furniture
from ...data import Items, check_seed, existing_root, one_of, positive
from ...files import cache_folder, printable, replacing
from ...images import read_image
from ...registry import DATASETS, TRANSFORMS

MAKER = 1  # to be raised whenever views of rooms come out otherwise


@TRANSFORMS.register_module()
class PackMatches:
    """Images (H, W, 3) to tensors (3, H, W), matches to float32 tensors.

    Args:
        most: most matches, of which others are drawn each time; None for all.
        swap: whether source and target are exchanged in half of the draws.
        flip: whether both images are mirrored, left and right, in half of the draws.
    """

    def __init__(self, most: int | None = None, swap: bool = False, flip: bool = False):
        self.most = None if most is None else positive("PackMatches.most", most)
        self.swap, self.flip = swap, flip

    def __call__(self, data: Mapping) -> dict:
        found = dict(data)
        sides = ("source", "target")
        if self.swap and np.random.rand() < 0.5:
            other = dict(source="target", target="source")
            found = {re.sub("^(source|target)", lambda side: other[side[1]], key): v for key, v in found.items()}
        mirrored = self.flip and np.random.rand() < 0.5
        chosen = None
        if self.most is not None and "source_points" in found and len(found["source_points"]) > self.most:
            chosen = np.random.choice(len(found["source_points"]), self.most, replace=False)
        for side in sides:
            image = found[side]
            found[side] = torch.from_numpy(np.ascontiguousarray(image[:, ::-1] if mirrored else image)).permute(2, 0, 1)
            if (points := found.get(f"{side}_points")) is not None:
                points = np.array(points if chosen is None else points[chosen], np.float32).reshape(-1, 2)
                if mirrored:
                    points[:, 0] = image.shape[1] - points[:, 0]
                found[f"{side}_points"] = torch.from_numpy(points)
            if mirrored and f"{side}_box" in found:
                left, top, right, bottom = found[f"{side}_box"]
                found[f"{side}_box"] = (image.shape[1] - right, top, image.shape[1] - left, bottom)
        return found


# --- rooms -----------------------------------------------------------------------------------------------------------


@DATASETS.register_module()
class RoomPairs(Items):
    """Pairs of views of furnished rooms, with a match for each pixel of the first that the second sees, from depths and
    cameras. A room is rendered when it is first asked for, and kept in a file.

    Item n is a pair of room n // (views (views - 1)): every view with every other, in order.

    Args:
        split: 'train' or 'test', whose furniture stands in the rooms.
        count: number of rooms.
        size: width and height of the views in pixels.
        views: views of a room, at least 2.
        quality: as of `Room.see`.
        cache: folder for all that Attlas keeps; `attlas.files.cache_folder()` unless given.
        transforms, seed: as of `Items`; the seed chooses the series of rooms, too.
    """

    def __init__(
        self,
        split: str = "train",
        count: int = 120,
        size: Sequence[int] = (128, 96),
        views: int = 3,
        quality: int = 1,
        cache: str | Path | None = None,
        transforms=(),
        seed: int = 0,
    ):
        one_of("RoomPairs.split", split, ("train", "test"))
        self.size = tuple(positive(f"RoomPairs.size[{place}]", side) for place, side in enumerate(size))
        if len(self.size) != 2:
            raise ValueError(f"RoomPairs.size is {size!r}; it must be (width, height).")
        if views < 2:
            raise ValueError(f"RoomPairs.views is {views!r}; it must be at least 2.")
        self.views, self.quality = positive("RoomPairs.views", views), positive("RoomPairs.quality", quality)
        about = f"{MAKER}|{self.size}|{views}|{quality}|".encode() + furniture.ASSET.read_bytes()
        name = f"{split}-{size[0]}x{size[1]}-seed{check_seed(seed)}-{hashlib.sha256(about).hexdigest()[:12]}"
        self.folder = (Path(cache).expanduser() if cache else cache_folder()) / "room_pairs" / name
        super().__init__(split, positive("RoomPairs.count", count) * views * (views - 1), (), transforms, seed)

    def name(self, item: int) -> str:
        room, first, second = self._place(item)
        return f"{self.split} room {room}, view {first} to view {second}"

    def _place(self, item: int) -> tuple[int, int, int]:
        room, pair = divmod(item, self.views * (self.views - 1))
        first, second = divmod(pair, self.views - 1)
        return room, first, second + (second >= first)

    def get(self, item: int) -> dict:
        number, first, second = self._place(item)
        file = self.folder / f"{number:06d}.npz"
        if not file.exists():
            self._render(number, file)
        with np.load(file, allow_pickle=False) as room:
            images, places = room["images"], room["places"][first, second].astype(np.float32)
        rows, columns = np.nonzero(~np.isnan(places[..., 0]))
        return dict(
            source=images[first],
            target=images[second],
            source_points=np.stack([columns, rows], 1).astype(np.float32) + 0.5,
            target_points=places[rows, columns],
            name=self.name(item),
        )

    def _render(self, number: int, file: Path) -> None:
        from ..rooms import Room  # here, because Open3D takes a second, and rooms that are there need none of it

        width, height = self.size
        room = Room(self.split, self.seed, number)
        views = [room.see(room.camera(view), width, height, self.quality) for view in range(self.views)]
        places = np.full((self.views, self.views, height, width, 2), np.nan, np.float32)
        for first in range(self.views):
            for second in range(self.views):
                if first != second:
                    where, visible = room.correspondence(views[first], views[second])
                    places[first, second][visible] = where[visible] + 0.5  # whose whole numbers are middles of pixels
        with replacing(file) as temporary:
            np.savez_compressed(temporary, images=np.stack([view.image for view in views]), places=places)


# --- key points ------------------------------------------------------------------------------------------------------


class KeyPointPairs(Items):
    """Base of data sets whose pairs are described in files: `pairs`, a description of each, from which `get` reads."""

    CLASSES: tuple[str, ...] = ()

    def __init__(self, split: str, pairs: Sequence[Any], transforms, seed: int):
        self.pairs = list(pairs)
        super().__init__(split, len(pairs), self.CLASSES, transforms, seed)


@DATASETS.register_module()
class SPair71k(KeyPointPairs):
    """SPair-71k (arXiv 1908.10543), as it unpacks: Layout/large/trn.txt, PairAnnotation/trn/*.json,
    JPEGImages/<category>/*.jpg. Boxes are [left, top, right, bottom].

    Args:
        root: folder SPair-71k.
        split: 'trn', 'val' or 'test'.
        layout: 'large' or 'small'.
        category: one category alone; None for all.
        transforms, seed: as of `Items`.

    Raises:
        FileNotFoundError: the list, or a file that it names, is not there.
        ValueError: at a draw, an annotation that does not fit (names the file).
    """

    CLASSES = (
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dog", "horse",
        "motorbike", "person", "pottedplant", "sheep", "train", "tvmonitor",
    )  # fmt: skip

    def __init__(self, root, split="trn", layout="large", category: str | None = None, transforms=(), seed: int = 0):
        one_of("SPair71k.split", split, ("trn", "val", "test"))
        one_of("SPair71k.layout", layout, ("large", "small"))
        self.root = existing_root("SPair71k", root, "Layout/, PairAnnotation/ and JPEGImages/.")
        listed = self.root / "Layout" / layout / f"{split}.txt"
        if not listed.is_file():
            raise FileNotFoundError(f"SPair71k: there is no {printable(listed)}.")
        names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
        if category is not None:
            one_of("SPair71k.category", category, self.CLASSES)
            names = [name for name in names if name.rpartition(":")[2] == category]
        super().__init__(split, names, transforms, seed)

    def name(self, item: int) -> str:
        return str(self.root / "PairAnnotation" / self.split / f"{self.pairs[item]}.json")

    def get(self, item: int) -> dict:
        file = Path(self.name(item))
        if not file.exists():  # archives unpacked where a colon may be in no name
            file = file.with_name(file.name.replace(":", "_"))
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            category = one_of("category", found["category"], self.CLASSES)
            sample: dict[str, Any] = dict(category=category, name=self.name(item))
            for side, short in (("source", "src"), ("target", "trg")):
                sample[side] = read_image(self.root / "JPEGImages" / category / found[f"{short}_imname"])
                sample[f"{side}_points"] = np.array(found[f"{short}_kps"], np.float32).reshape(-1, 2) + 0.5
                sample[f"{side}_box"] = tuple(map(float, found[f"{short}_bndbox"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is no annotation of a pair: {type(error).__name__} {error}") from error
        _check_points(sample, file)
        return sample


@DATASETS.register_module()
class PFPascal(KeyPointPairs):
    """PF-PASCAL (arXiv 1703.07144): <split>_pairs.csv (source_image, target_image, class from 1, and of trn perhaps
    flip), Annotations/<class>/<image>.mat with `kps` (N, 2), NaN for what is not seen, and `bbox`, and
    JPEGImages/*.jpg, both in `root` or in its folder PF-dataset-PASCAL.

    Key points that both images show are matches. Where `flip` is 1, both images are mirrored.

    Args:
        root: folder PF-PASCAL.
        split: 'trn', 'val' or 'test'.
        transforms, seed: as of `Items`.

    Raises: as of `SPair71k`.
    """

    CLASSES = (
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
        "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip

    def __init__(self, root, split="trn", transforms=(), seed: int = 0):
        one_of("PFPascal.split", split, ("trn", "val", "test"))
        self.root = existing_root("PFPascal", root, "trn_pairs.csv, Annotations/ and JPEGImages/.")
        inner = self.root / "PF-dataset-PASCAL"
        self.data = inner if inner.is_dir() else self.root
        self.listed = self.root / f"{split}_pairs.csv"
        if not self.listed.is_file():
            raise FileNotFoundError(f"PFPascal: there is no {printable(self.listed)}.")
        with open(self.listed, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for number, row in enumerate(rows, 2):
            if not {"source_image", "target_image", "class"} <= row.keys() or not str(row["class"]).isdigit():
                raise ValueError(
                    f"{self.listed}, line {number}: source_image, target_image and class (1 to 20) were expected."
                )
            if not 1 <= int(row["class"]) <= len(self.CLASSES):
                raise ValueError(f"{self.listed}, line {number}: class is {row['class']}; it may be 1 to 20.")
        super().__init__(split, rows, transforms, seed)

    def name(self, item: int) -> str:
        row = self.pairs[item]
        return f"{self.listed}: {Path(row['source_image']).name} to {Path(row['target_image']).name}"

    def get(self, item: int) -> dict:
        row = self.pairs[item]
        category = self.CLASSES[int(row["class"]) - 1]
        sample: dict[str, Any] = dict(category=category, name=self.name(item))
        for side in ("source", "target"):
            name = Path(row[f"{side}_image"]).name
            sample[side] = read_image(self.data / "JPEGImages" / name)
            points, box = read_key_points(self.data / "Annotations" / category / f"{Path(name).stem}.mat")
            sample[f"{side}_points"], sample[f"{side}_box"] = points + 0.5, box
        if len(sample["source_points"]) != len(sample["target_points"]):
            raise ValueError(f"{self.name(item)}: the images have different numbers of key points.")
        both = ~np.isnan(sample["source_points"]).any(1) & ~np.isnan(sample["target_points"]).any(1)
        mirrored = row.get("flip") == "1"
        for side in ("source", "target"):
            points, width = sample[f"{side}_points"][both], sample[side].shape[1]
            if mirrored:
                sample[side] = np.ascontiguousarray(sample[side][:, ::-1])
                points[:, 0] = width - points[:, 0]
                left, top, right, bottom = sample[f"{side}_box"]
                sample[f"{side}_box"] = (width - right, top, width - left, bottom)
            sample[f"{side}_points"] = points
        _check_points(sample, self.listed)
        return sample


def read_key_points(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """`kps` float32 (N, 2) and `bbox` of a file of PF-PASCAL, .mat.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no MATLAB file, or lacks one of them.
    """
    from scipy.io import loadmat  # here, because this one format alone needs it

    try:
        with open(path, "rb") as file:
            found = loadmat(file)
        points = np.array(found["kps"], np.float32).reshape(-1, 2)
        box = tuple(np.array(found["bbox"], np.float64).reshape(4).tolist())
    except FileNotFoundError:
        raise
    except Exception as error:  # of damaged files the reader fails in any way
        raise ValueError(f"{path} is no file of key points (kps, bbox): {printable(error)}") from error
    return points, box


def _check_points(sample: Mapping, file: Path) -> None:
    source, target = sample["source_points"], sample["target_points"]
    if source.shape != target.shape:
        raise ValueError(f"{file}: {len(source)} key points of the source, and {len(target)} of the target.")
    for side in ("source", "target"):
        if not np.isfinite(sample[f"{side}_points"]).all():
            raise ValueError(f"{file}: a key point of the {side} is not finite.")


# --- homographies ----------------------------------------------------------------------------------------------------


@DATASETS.register_module()
class HPatches(KeyPointPairs):
    """HPatches' sequences (arXiv 1704.05939): folders i_* (light) and v_* (viewpoint) of 1.ppm to 6.ppm, and H_1_2 to
    H_1_6, homographies from places of image 1 to those of another, where whole numbers are middles of pixels. A pair
    is image 1 and one of the others; its matches are the pixels of image 1 that lie inside the other.

    Args:
        root: folder hpatches-sequences-release.
        split: 'v', 'i' or 'all'.
        step: distance of the pixels that are taken, along both axes; 1 for all.
        transforms, seed: as of `Items`.

    Raises: as of `SPair71k`.
    """

    def __init__(self, root, split: str = "v", step: int = 1, transforms=(), seed: int = 0):
        one_of("HPatches.split", split, ("v", "i", "all"))
        self.root, self.step = existing_root("HPatches", root, "folders i_* and v_*."), positive("HPatches.step", step)
        kinds = ("i", "v") if split == "all" else (split,)
        folders = sorted(path for kind in kinds for path in self.root.glob(f"{kind}_*") if path.is_dir())
        if not folders:
            raise FileNotFoundError(f"HPatches: {printable(self.root)} holds no folder {' or '.join(kinds)}_*.")
        pairs = [(folder, number) for folder in folders for number in range(2, 7)]
        for folder, number in pairs:
            for name in ("1.ppm", f"{number}.ppm", f"H_1_{number}"):
                if not (folder / name).is_file():
                    raise FileNotFoundError(f"HPatches: there is no {printable(folder / name)}.")
        super().__init__(split, pairs, transforms, seed)

    def name(self, item: int) -> str:
        folder, number = self.pairs[item]
        return f"{folder}/1.ppm to {number}.ppm"

    def get(self, item: int) -> dict:
        folder, number = self.pairs[item]
        images = [read_image(folder / f"{n}.ppm") for n in (1, number)]
        try:
            homography = np.loadtxt(folder / f"H_1_{number}").reshape(3, 3)
        except ValueError as error:
            raise ValueError(f"{folder / f'H_1_{number}'} is no homography of 3 x 3 numbers: {error}") from error
        (height, width), (rows, columns) = (image.shape[:2] for image in images)
        x, y = np.meshgrid(np.arange(0, width, self.step), np.arange(0, height, self.step))
        points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(np.float64)
        found = homography @ points
        ahead = found[2] > 1e-9
        places = (found[:2] / np.where(ahead, found[2], 1)).T + 0.5
        inside = ahead & (places >= 0).all(1) & (places <= (columns, rows)).all(1)
        return dict(
            source=images[0],
            target=images[1],
            source_points=(points[:2].T + 0.5)[inside].astype(np.float32),
            target_points=places[inside].astype(np.float32),
            category=f"1-{number}",
            name=self.name(item),
        )
