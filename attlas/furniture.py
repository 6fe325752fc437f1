"""Furniture14: 408 real furniture models in 14 classes, in meters, y up, colored, wound outward.

What it is made of and who made it stands in FURNITURE14.md beside this file; `tools/make_furniture14.py` rebuilds it.
"""

import difflib
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

ASSET = Path(__file__).with_name("furniture14.npz")
CLASSES: tuple[str, ...] = (
    "bed", "cabinet", "car", "chair", "door", "lamp", "person", "plant", "sofa", "table", "vessel", "wallplate",
    "washbasin", "window",
)  # fmt: skip
PARTS: tuple[str, ...] = (  # of some models of eight classes
    "bed/bedding", "bed/frame", "chair/seat", "chair/frame", "lamp/shade", "lamp/stand", "person/head", "person/body",
    "plant/foliage", "plant/trunk", "plant/pot", "table/top", "table/legs", "wallplate/plate", "wallplate/insert",
    "window/glass", "window/frame",
)  # fmt: skip
NO_PART = 255  # in the asset: the faces of a model without parts
SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Mesh:
    """One model. Its arrays are read-only: copy before changing them."""

    name: str
    label: int  # index into CLASSES
    vertices: np.ndarray = field(repr=False)  # (V, 3) float32, meters, y up, standing on y = 0
    faces: np.ndarray = field(repr=False)  # (F, 3) int32, counter-clockwise seen from outside
    colors: np.ndarray = field(repr=False)  # (F, 3) uint8, sRGB
    author: str
    license: str  # SPDX identifier
    library: str
    model: str  # path of the OBJ file inside the library
    parts: np.ndarray | None = field(default=None, repr=False)  # (F,) uint8, indices into PARTS; None: it has none


def load(split: str) -> list[Mesh]:
    """The meshes of 'train' (286), 'test' (122) or 'all' (408), in the order of tools/furniture14.csv."""
    if split not in SPLITS:
        near = difflib.get_close_matches(str(split), SPLITS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"split: got {split!r}, must be one of {', '.join(map(repr, SPLITS))}{hint}")
    return [mesh for mesh, part in _read(ASSET) if split in ("all", part)]


def scattered(
    triangles: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points on triangles (F, 3, 3) float64, drawn evenly by area: of each point the number of its triangle (N,) int64,
    its place (N, 3) and the normal of its triangle (N, 3), float64."""
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    areas = np.linalg.norm(cross, axis=1)
    numbers = random.choice(len(areas), count, p=areas / areas.sum())
    a, b = np.sqrt(random.random(count)), random.random(count)
    weights = np.stack([1 - a, a * (1 - b), a * b], axis=1)
    return numbers, np.einsum("nk,nkc->nc", weights, triangles[numbers]), cross[numbers] / areas[numbers, None]


@cache
def _read(path: Path) -> tuple[tuple[Mesh, str], ...]:
    """Every mesh of the asset with its split."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the Furniture14 asset is missing; python tools/make_furniture14.py makes it")
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
        return tuple(_unpack(data))
    except (ValueError, KeyError, IndexError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RuntimeError(
            f"{path}: not a readable Furniture14 asset ({type(error).__name__}: {error}); "
            "python tools/make_furniture14.py makes it anew"
        ) from error


def _unpack(data: dict[str, np.ndarray]) -> list[tuple[Mesh, str]]:
    if tuple(data["classes"].tolist()) != CLASSES:
        raise ValueError(f"classes are {data['classes'].tolist()}")
    if tuple(data["parts"].tolist()) != PARTS:
        raise ValueError(f"parts are {data['parts'].tolist()}")
    meshes = []
    for i, split in enumerate(data["split"].tolist()):
        vertex = slice(*data["vertex_start"][i : i + 2])
        face = slice(*data["face_start"][i : i + 2])
        arrays = (
            data["low"][i] + data["vertices"][vertex].astype(np.float32) * data["step"][i],
            data["faces"][face].astype(np.int32),
            data["colors"][face],
            data["face_part"][face],
        )
        for array in arrays:
            array.setflags(write=False)
        vertices, faces, colors, part = arrays
        author, licence, library, model = (str(data[key][i]) for key in ("author", "licence", "library", "model"))
        parts = None if (part == NO_PART).all() else part
        name, label = str(data["name"][i]), int(data["label"][i])
        mesh = Mesh(name, label, vertices, faces, colors, author, licence, library, model, parts)
        meshes.append((mesh, split))
    return meshes
