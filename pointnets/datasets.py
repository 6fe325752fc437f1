"""Shapes to learn from: the built-in furniture, the published sets in their published layouts, and any folder of yours.

Every data set serves PyTorch Geometric `Data(pos (N, 3) float32, normal (N, 3) float32 or absent, face (3, F) int64 for
meshes, y () int64, cloud int, name str)`, and those of segmentation `point_label (N,) int64` besides, perhaps with
`color (N, 3) uint8`, after its `transforms`, which get float64 where a shape needs it (see `read_shape`). Draws are
repeatable (`attlas.data.Items`). Files are read when they are asked for; no file is ever unpickled.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch_geometric.data import Data

from .. import furniture
from ..data import SPLITS, UP_AXES, Items, drawn, existing_root, find_files, one_of, positive, seeded
from ..files import printable, replacing
from ..registry import DATASETS
from .formats import DEFLATED, read_text
from .shapes import SUFFIXES, Shape, check_shape, read_shape
from .transforms import GROUPS, as_float32, random_rotation, rotate


def as_data(shape: Shape, name: str, label: int = 0, item: int = 0) -> Data:
    """A shape as the transforms take it; its arrays are copied."""
    data = Data(y=torch.tensor(label), cloud=item, name=name)
    for key, array in shape.items():
        data[key] = torch.from_numpy(array.T.copy() if key == "face" else array.copy())
    return data


class PointClouds(Items):
    """Base of the data sets (see `Items`): the `names` and `labels` of the items, and the `load(item) -> Shape` that
    every data set brings. Where the classes are those of points, the items have no `labels`; their `y` is 0, or their
    number among the `categories`."""

    load: Callable[[int], Shape]
    categories: np.ndarray | None = None

    def __init__(self, split: str, classes: Sequence[str], names: Sequence[str], labels, transforms, seed: int):
        self.names = list(names)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        super().__init__(split, len(self.names), classes, transforms, seed)

    def name(self, item: int) -> str:
        return f"shape {self.names[item]}"

    def group(self, item: int) -> str:
        return self.names[item]

    def get(self, item: int) -> Data:
        numbers = self.categories if self.labels is None else self.labels
        return as_data(self.load(item), self.names[item], 0 if numbers is None else int(numbers[item]), item)

    def draw(self, epoch: int, item: int) -> Data:
        def transform(data: Data) -> Data:
            return as_float32(self.transform(data))

        return drawn(transform, self.get(item), self.name(item), self.seed, epoch, item)


@DATASETS.register_module()
class Furniture14(PointClouds):
    """The built-in furniture: 408 real meshes in 14 classes, in meters, y up, normals outward (see FURNITURE14.md)."""

    CLASSES = furniture.CLASSES

    def __init__(self, split: str = "train", transforms=(), seed: int = 0):
        self.meshes = furniture.load(one_of("Furniture14.split", split, furniture.SPLITS))
        names, labels = [mesh.name for mesh in self.meshes], [mesh.label for mesh in self.meshes]
        super().__init__(split, self.CLASSES, names, labels, transforms, seed)

    def load(self, item: int) -> Shape:
        mesh = self.meshes[item]
        return {"pos": mesh.vertices, "face": mesh.faces.astype(np.int64)}


class ShapeFiles(PointClouds):
    """A data set with one file, or one folder of files, per shape. With a `cache` folder, what was parsed is kept there
    as npz, which loads much faster than text. A file that changed is parsed again.

    Attributes:
        colors: whether the colors of the points are read, and checked (see `read_shape`).
    """

    colors = False

    def __init__(self, split, classes, files: Sequence[tuple[Path, int]], transforms, seed, cache=None):
        names = [f"{classes[label]}/{path.stem}" for path, label in files]
        self._of_files([path for path, _ in files], cache)
        super().__init__(split, classes, names, [label for _, label in files], transforms, seed)

    def _of_files(self, paths: list[Path], cache) -> None:
        self.paths = paths
        self.cache = Path(cache).expanduser() if cache else None

    def load(self, item: int) -> Shape:
        path = self.paths[item]
        if self.cache is None or not path.exists():
            return self.parse(item)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, stat.st_mtime_ns, stat.st_size) for file in files for stat in [file.stat()]]
        key = hashlib.sha256(f"{path.resolve()}|{stats}".encode()).hexdigest()[:16]
        cached = self.cache / f"{path.stem}-{key}.npz"
        if not cached.exists():
            shape: dict[str, Any] = self.parse(item)
            with replacing(cached) as temporary:
                np.savez(temporary, **shape)
        return read_shape(cached, self.colors)

    def parse(self, item: int) -> Shape:
        """The shape in the file of an item."""
        return read_shape(self.paths[item], self.colors)


def find_shapes(
    dataset: str, root: Path, split: str, endings: Sequence[str], layout: str, test_share: float | None = None
) -> tuple[list[str], list[tuple[Path, int]]]:
    """Classes and (file, label) of a folder tree (see `attlas.data.find_files`)."""
    classes, files, labels = find_files(dataset, root, split, endings, layout, test_share)
    return classes, [(Path(path), label) for path, label in zip(files, labels)]


@DATASETS.register_module()
class ShapeFolder(ShapeFiles):
    """Your own shapes, a folder for each class: `<root>/<class>/*`, or already split as
    `<root>/<train|val|test>/<class>/*` or `<root>/<class>/<train|val|test>/*` (see `attlas.data.find_files`). Meshes
    and clouds as `read_shape` reads them, also mixed: `RandomPoints` samples both, and
    `EstimateNormals(only_missing=True)` gives clouds the normals that they lack.

    Args:
        split: 'train', 'val', 'test' or 'all'. Where a share is held out, it is 'val' and 'test' alike.
        test_share: the share of each class that is held out where the folders do not say; the choice depends only on
            the files' names.
        cache: a folder for what was parsed (see `ShapeFiles`).
    """

    LAYOUT = "<class>/<file>, <train|val|test>/<class>/<file>, or <class>/<train|val|test>/<file>."

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0, test_share: float = 0.2, cache=None):
        one_of("ShapeFolder.split", split, (*SPLITS, "all"))
        root = existing_root("ShapeFolder", root, self.LAYOUT)
        classes, files = find_shapes("ShapeFolder", root, split, SUFFIXES, self.LAYOUT, test_share)
        super().__init__(split, classes, files, transforms, seed, cache)


@DATASETS.register_module()
class ModelNet40(ShapeFiles):
    """ModelNet40 (Wu et al., CVPR 2015), in whichever layout lies at `root` (or one folder below, under its own name):

    - `modelnet40_normal_resampled`: `modelnet40_shape_names.txt`, `modelnet40_{train,test}.txt`, and
      `airplane/airplane_0001.txt` with 10,000 lines x,y,z,nx,ny,nz; y is up.
    - `ModelNet40`, the original meshes: `airplane/{train,test}/airplane_0001.off`; z is up.

    Args:
        names: 'modelnet40' or 'modelnet10' (the ten-class subset).
        cache: a folder for what was parsed; of the text files, 2.9 GB.
    """

    LAYOUT = (
        "modelnet40_shape_names.txt beside modelnet40_train.txt and airplane/airplane_0001.txt "
        "(modelnet40_normal_resampled), or airplane/train/airplane_0001.off (the original meshes)."
    )
    TEN = ("bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet")

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0, names: str = "modelnet40", cache=None):
        one_of("ModelNet40.split", split, furniture.SPLITS)
        one_of("ModelNet40.names", names, ("modelnet40", "modelnet10"))
        root = existing_root("ModelNet40", root, self.LAYOUT)
        for folder in ("modelnet40_normal_resampled", "ModelNet40"):
            root = root / folder if (root / folder).is_dir() else root
        if (root / f"{names}_shape_names.txt").exists():
            classes, files = self._resampled(root, split, names)
        else:
            classes, files = find_shapes("ModelNet40", root, split, (".off",), self.LAYOUT)
            if names == "modelnet10":
                files = [(path, self.TEN.index(classes[label])) for path, label in files if classes[label] in self.TEN]
                classes = list(self.TEN)
        super().__init__(split, classes, files, transforms, seed, cache)

    @staticmethod
    def _resampled(root: Path, split: str, names: str) -> tuple[list[str], list[tuple[Path, int]]]:
        classes = (root / f"{names}_shape_names.txt").read_text().split()
        files = []
        for part in ("train", "test") if split == "all" else (split,):
            listing = root / f"{names}_{part}.txt"
            if not listing.is_file():
                raise FileNotFoundError(f"{listing} is missing; it lists the shapes, such as {classes[0]}_0001.")
            for shape in listing.read_text().split():
                name = shape.rpartition("_")[0]
                if name not in classes:
                    raise ValueError(f"{listing} lists {shape!r}, of no class in {names}_shape_names.txt.")
                files.append((root / name / f"{shape}.txt", classes.index(name)))
        return classes, files


@DATASETS.register_module()
class FG3D(ShapeFiles):
    """One category of FG3D, fine-grained shapes (Liu et al., TIP 2021): Airplane (13 classes), Car (20) or Chair (33).

    The layout is an assumption, for we have not seen the release: meshes (.obj or .off) at
    `<root>/<category>/<train|test>/<class>/*` or `<root>/<category>/<class>/<train|test>/*`.
    """

    LAYOUT = "<category>/<train|test>/<class>/*.obj or <category>/<class>/<train|test>/*.obj (or .off)."

    def __init__(self, root, category: str, split: str = "train", transforms=(), seed: int = 0, cache=None):
        one_of("FG3D.split", split, furniture.SPLITS)
        one_of("FG3D.category", category, ("Airplane", "Car", "Chair"))
        root = existing_root("FG3D", Path(root).expanduser() / category, self.LAYOUT)
        classes, files = find_shapes("FG3D", root, split, (".obj", ".off"), self.LAYOUT)
        super().__init__(split, classes, files, transforms, seed, cache)


@DATASETS.register_module()
class ScanObjectNN(PointClouds):
    """ScanObjectNN (Uy et al., ICCV 2019): 15 classes of scanned objects, 2,048 points each without normals, y up.

    Args:
        root: `h5_files`, or the folder that holds it.
        variant: 'OBJ_BG' (objects with background), 'OBJ_ONLY' (without), or one of the perturbed sets 'PB_T25',
            'PB_T25_R', 'PB_T50_R' and 'PB_T50_RS' (the hardest, which most papers report).
        background: of the perturbed sets, the one with background (main_split) or without (main_split_nobg).
    """

    CLASSES = (
        "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
        "sofa", "toilet",
    )  # fmt: skip
    VARIANTS = {
        "OBJ_ONLY": "",
        "OBJ_BG": "",
        "PB_T25": "_augmented25_norot",
        "PB_T25_R": "_augmented25rot",
        "PB_T50_R": "_augmentedrot",
        "PB_T50_RS": "_augmentedrot_scale75",
    }
    LAYOUT = "h5_files/main_split/training_objectdataset_augmentedrot_scale75.h5 and its siblings."

    def __init__(
        self,
        root,
        split: str = "train",
        transforms=(),
        seed: int = 0,
        variant: str = "PB_T50_RS",
        background: bool = True,
    ):
        one_of("ScanObjectNN.split", split, ("train", "test"))
        one_of("ScanObjectNN.variant", variant, tuple(self.VARIANTS))
        root = existing_root("ScanObjectNN", root, self.LAYOUT)
        root = root / "h5_files" if (root / "h5_files").is_dir() else root
        plain = variant == "OBJ_ONLY" or (variant.startswith("PB") and not background)
        part = {"train": "training", "test": "test"}[split]
        folder = "main_split_nobg" if plain else "main_split"
        self.path = root / folder / f"{part}_objectdataset{self.VARIANTS[variant]}.h5"
        labels = self._read_labels()
        names = [f"{self.path.stem}[{i}]" for i in range(len(labels))]
        super().__init__(split, self.CLASSES, names, labels, transforms, seed)

    def _read_labels(self) -> np.ndarray:
        if not self.path.is_file():
            raise FileNotFoundError(f"ScanObjectNN: {self.path} is missing. Expected below root: {self.LAYOUT}")
        try:
            with h5py.File(self.path) as file:
                data, label = (self._array(file, name) for name in ("data", "label"))
                shape, labels = data.shape, label[:].reshape(-1)
        except Exception as error:  # of HDF5, of any kind
            raise ValueError(f"{self.path} is not a readable h5 file with 'data' and 'label': {error}") from error
        if len(shape) != 3 or shape[2] != 3 or shape[0] != len(labels):
            raise ValueError(f"{self.path}: data (M, 2048, 3), label (M,) were expected, not {shape}, {labels.shape}.")
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.CLASSES)):
            raise ValueError(f"{self.path}: labels 0 to 14 were expected, not {labels.min()} to {labels.max()}.")
        return labels

    def _array(self, file: h5py.File, name: str) -> h5py.Dataset:
        """An array of numbers that lies in the file, whole: HDF5 fills up what was never written, follows links to
        other files, and takes any size from a header."""
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name!r} is missing, or a link to somewhere else")
        array = file[name]
        if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiu" or array.is_virtual or array.external:
            raise ValueError(f"{name!r} is not an array of numbers in this file")
        needed, held, filters = array.nbytes, array.id.get_storage_size(), array.id.get_create_plist()
        if needed > DEFLATED * held or math.prod(array.chunks or ()) * array.dtype.itemsize > DEFLATED * held:
            raise ValueError(f"{name!r} of shape {array.shape} in chunks {array.chunks} is not held by {held} bytes")
        known = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
        if other := {filters.get_filter(i)[0] for i in range(filters.get_nfilters())} - known:
            raise ValueError(f"{name!r} is packed by the filter {min(other)}, which is not read")
        whole = (
            held == needed
            if array.chunks is None
            else array.id.get_num_chunks() == math.prod(-(-n // chunk) for n, chunk in zip(array.shape, array.chunks))
        )
        if not whole:
            raise ValueError(f"{name!r} was not written whole")
        return array

    def load(self, item: int) -> Shape:
        # Opened at each draw (about a millisecond): an open HDF5 file survives neither a fork nor a pickle.
        try:
            with h5py.File(self.path) as file:
                return check_shape({"pos": file["data"][item]})
        except Exception as error:  # of HDF5, of any kind
            raise ValueError(f"{self.path}, shape {item}: {error}") from error


def category_parts(classes: Sequence[str]) -> dict[str, list[int]]:
    """The classes of each category, of classes of points that are named `category/part`; of names without a slash the
    category is ''."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(classes):
        category, slash, _ = name.rpartition("/")
        found.setdefault(category if slash else "", []).append(number)
    return found


def competing(classes: Sequence[str], category: int | None) -> list[int]:
    """The classes that a point of a cloud may have: those of its category, by number; all of them for None."""
    parts = list(category_parts(classes).values())
    if category is not None and not 0 <= category < len(parts):
        raise ValueError(f"the category is {category}, and the classes are of {len(parts)} categories")
    return list(range(len(classes))) if category is None else parts[category]


@DATASETS.register_module()
class ShapeNetPart(ShapeFiles):
    """ShapeNetPart (Yi et al., 2016): shapes of 16 categories, whose points are labelled with 50 parts; y is up.

    As published in `shapenetcore_partanno_segmentation_benchmark_v0_normal`: `synsetoffset2category.txt` names the
    folders, `train_test_split/shuffled_{train,val,test}_file_list.json` list the shapes, and `02691156/<name>.txt` has
    a line x y z nx ny nz label for each point.

    Items are whole clouds with `point_label` (N,), the number of the part among all 50, and `y`, the number of the
    category in `category_parts(classes)`.

    Args:
        root: the folder, or the one that holds it.
        split: 'train', 'val', 'test', 'trainval' (on which most papers train) or 'all'.
        cache: a folder for what was parsed.

    Raises:
        FileNotFoundError: a list, or a file that it names, is missing.
        ValueError: names the file that does not hold what it must: seven columns of finite numbers, normals of length
            1, and labels of parts of its category, for at least two points.
    """

    COUNTS = dict(
        Airplane=4, Bag=2, Cap=2, Car=4, Chair=4, Earphone=3, Guitar=3, Knife=2, Lamp=4, Laptop=2, Motorbike=6, Mug=2,
        Pistol=3, Rocket=3, Skateboard=3, Table=3,
    )  # fmt: skip
    CLASSES = tuple(f"{category}/{part}" for category, count in COUNTS.items() for part in range(count))
    CATEGORIES = tuple(COUNTS)
    FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    LAYOUT = (
        "synsetoffset2category.txt beside train_test_split/shuffled_train_file_list.json and 02691156/<name>.txt "
        f"({FOLDER})."
    )
    PARTS_OF_SPLIT = {"trainval": ("train", "val"), "all": ("train", "val", "test")}
    categories: np.ndarray

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0, cache=None):
        one_of("ShapeNetPart.split", split, (*SPLITS, *self.PARTS_OF_SPLIT))
        root = existing_root("ShapeNetPart", root, self.LAYOUT)
        root = root / self.FOLDER if (root / self.FOLDER).is_dir() else root
        folders = self._folders(root)
        names, paths, categories = [], [], []
        for part in self.PARTS_OF_SPLIT.get(split, (split,)):
            listing = root / "train_test_split" / f"shuffled_{part}_file_list.json"
            for folder, name in _listed_shapes(listing):
                if folder not in folders:
                    raise ValueError(
                        f"{listing} lists a shape of {printable(folder)!r}, which synsetoffset2category.txt does not "
                        "name."
                    )
                paths.append(root / folder / f"{name}.txt")
                names.append(f"{folders[folder]}/{name}")
                categories.append(self.CATEGORIES.index(folders[folder]))
        self._of_files(paths, cache)
        self.categories = np.array(categories, dtype=np.int64)
        PointClouds.__init__(self, split, self.CLASSES, names, None, transforms, seed)

    @classmethod
    def _folders(cls, root: Path) -> dict[str, str]:
        """The category of each folder."""
        path = root / "synsetoffset2category.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing. Expected there: {cls.LAYOUT}")
        folders = {}
        for line in filter(None, map(str.strip, path.read_text().splitlines())):
            category, _, folder = line.partition("\t") if "\t" in line else line.partition(" ")
            if category not in cls.CATEGORIES or not folder.strip():
                raise ValueError(
                    f"{path}: {printable(line)!r} is no category ({', '.join(cls.CATEGORIES)}) and folder."
                )
            folders[folder.strip()] = category
        return folders

    def parse(self, item: int) -> Shape:
        path, category = self.paths[item], self.CATEGORIES[self.categories[item]]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; train_test_split lists it.")
        try:
            table, _ = read_text(path.read_bytes())
            if table.ndim != 2 or table.shape[1] != 7:
                raise ValueError(f"columns x y z nx ny nz label were expected, not an array of shape {table.shape}")
            if len(table) < 2:
                raise ValueError("it has one point alone, which no part can be told of")
            shape = check_shape({"pos": table[:, :3], "normal": table[:, 3:6]})
            shape["point_label"] = check_point_labels(table[:, 6], category_parts(self.CLASSES)[category], category)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return shape


@DATASETS.register_module()
class FurnitureParts(PointClouds):
    """Parts of the built-in furniture: 128 models to train on and 60 to test, of eight of its classes and with its
    splits, whose materials tell 17 parts (see FURNITURE14.md); in meters, y up, normals outward.

    Items are whole clouds as those of `ShapeNetPart`: `point_label` (N,), the number of the part among all 17, and `y`,
    the number of the category in `category_parts(classes)`.

    Args:
        split: 'train', 'test' or 'all'.
        points: size of a cloud, which is drawn evenly by area, the same at every reading.
    """

    CLASSES = furniture.PARTS
    CATEGORIES = tuple(category_parts(CLASSES))

    def __init__(self, split: str = "train", transforms=(), seed: int = 0, points: int = 2048):
        one_of("FurnitureParts.split", split, furniture.SPLITS)
        self.points = positive("FurnitureParts.points", points)
        self.meshes = [mesh for mesh in furniture.load(split) if mesh.parts is not None]
        names = [furniture.CLASSES[mesh.label] for mesh in self.meshes]
        self.categories = np.array([self.CATEGORIES.index(name) for name in names])
        super().__init__(split, self.CLASSES, [mesh.name for mesh in self.meshes], None, transforms, seed)

    def load(self, item: int) -> Shape:
        mesh = self.meshes[item]
        assert mesh.parts is not None
        triangles = mesh.vertices[mesh.faces].astype(np.float64)
        numbers, pos, normal = furniture.scattered(triangles, self.points, np.random.default_rng(item))
        label = mesh.parts[numbers].astype(np.int64)
        return {"pos": pos.astype(np.float32), "normal": normal.astype(np.float32), "point_label": label}


def check_point_labels(column: np.ndarray, allowed: Sequence[int], whose: str) -> np.ndarray:
    """Labels of points (N,), as int64; a ValueError tells of the first that are not among `allowed`."""
    bad = ~np.isin(column, allowed)
    if bad.any():
        values = ", ".join(f"{value:g}" for value in np.unique(column[bad])[:5])
        raise ValueError(
            f"{bad.sum()} of {len(column)} points have labels {values} (the first in row {int(bad.argmax()) + 1}); "
            f"those of {whose} are {min(allowed)} to {max(allowed)}"
        )
    return column.astype(np.int64)


def _listed_shapes(listing: Path) -> list[tuple[str, str]]:
    """Folder and name of the shapes in a list of ShapeNetPart."""
    if not listing.is_file():
        raise FileNotFoundError(f"{listing} is missing; it lists the shapes, such as shape_data/02691156/1a04e3.")
    try:
        found = json.loads(listing.read_text())
    except ValueError as error:
        raise ValueError(f"{listing} is no JSON: {error}") from error
    parts = [str(entry).split("/") for entry in found] if isinstance(found, list) else [[]]
    if any(len(names) < 2 or {"", ".", ".."} & set(names[-2:]) for names in parts):
        raise ValueError(f"{listing}: a list of names such as shape_data/02691156/1a04e3 was expected.")
    return [(folder, name) for *_, folder, name in parts]


@DATASETS.register_module()
class RotatedViews(Items):
    """A test set under the rotations of the field's protocols: `views=dict(z=1, SO3=4)` serves each cloud once turned
    about the `up` axis and four times by Haar-uniform rotations. All views of a cloud are the same draw of it;
    `data.protocol` names the group ('none', 'z' or 'SO3'). All clouds come in the first view, then in the next.

    Args:
        dataset: the data set or its config.
        transforms: applied after the rotation (e.g. EstimateNormals), with the same random numbers for every view.
    """

    def __init__(self, dataset, views: dict[str, int], up: str = "y", transforms=(), seed: int = 0):
        self.dataset: PointClouds = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.views = [
            (one_of("RotatedViews.views", group, GROUPS), number)
            for group, count in views.items()
            for number in range(positive(f"RotatedViews.views[{group!r}]", count))
        ]
        if not self.views:
            raise ValueError("RotatedViews.views is empty; name groups and how often, such as dict(z=1, SO3=4).")
        self.up = one_of("RotatedViews.up", up, tuple(UP_AXES))
        size = len(self.views) * len(self.dataset)
        super().__init__(self.dataset.split, size, self.dataset.classes, transforms, seed)

    def get(self, item: int) -> Data:
        return self.dataset.get(item % len(self.dataset))

    def draw(self, epoch: int, item: int) -> Data:
        view, cloud = divmod(item, len(self.dataset))
        group, number = self.views[view]
        data = self.dataset[cloud + epoch * len(self.dataset)]
        with seeded(self.seed, epoch, cloud, GROUPS.index(group), number):
            data = rotate(data, random_rotation(group, self.up))
        data.protocol = group
        return drawn(self.transform, data, f"shape {data.name}", self.seed, epoch, cloud)
