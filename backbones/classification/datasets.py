"""Images to learn classes from: pictures in folders (ImageNet, EuroSAT, yours) or in a list (DomainNet), CIFAR, MNIST,
Fashion-MNIST and SVHN.

Every data set serves dict(image, label int, index int) after its `transforms`; before them the image is uint8
(H, W, 3), red, green, blue, and the transform `PackImage` makes it a float32 tensor (3, H, W). Draws are repeatable
(`attlas.data.Items`). No file is ever unpickled.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from ...data import SPLITS, Items, existing_root, find_files, one_of, positive
from ...files import near_files, printable
from ...images import MAX_PIXELS, SUFFIXES, read_image
from ...registry import DATASETS


class Images(Items):
    """Base of the data sets (see `Items`): `labels` (N,) int64, and the `load(item) -> uint8 (H, W, 3)` that each
    brings."""

    load: Callable[[int], np.ndarray]

    def __init__(self, split: str, classes: Sequence[str], labels, transforms, seed: int):
        self.labels = np.asarray(labels, dtype=np.int64)
        super().__init__(split, len(self.labels), classes, transforms, seed)

    def get(self, item: int) -> dict:
        return dict(image=self.load(item), label=int(self.labels[item]), index=item)


class ImageArrays(Images):
    """A data set whose `images` lie in one array: uint8 (N, H, W, 3), or grey (N, H, W), which is given three times."""

    def __init__(self, split, classes, images: np.ndarray, labels, transforms, seed):
        self.images = images
        super().__init__(split, classes, labels, transforms, seed)

    def load(self, item: int) -> np.ndarray:
        image = self.images[item]
        if image.ndim == 2:
            image = np.broadcast_to(image[..., None], (*image.shape, 3))
        return np.array(image, order="C")  # a copy: a transform may write into it


def check_labels(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    """`labels` (N,) of a file, which must lie below `count`."""
    if len(labels) and labels.max() >= count:
        raise ValueError(f"{path}: labels 0 to {count - 1} were expected, not {labels.min()} to {labels.max()}.")
    return labels


# --- pictures in files -----------------------------------------------------------------------------------------------


class ImageFiles(Images):
    """A data set whose pictures are files.

    Args:
        files: their paths.
        max_pixels: most pixels of a picture, of width times height; one that declares more is refused.
    """

    def __init__(self, split, classes, files: Sequence[str], labels, transforms, seed, max_pixels: int):
        self.max_pixels = positive(f"{type(self).__name__}.max_pixels", max_pixels)
        # One array of bytes: a million Python strings would be copied into every worker, touched as they are counted
        self.files = np.array([os.fsencode(path) for path in files])
        super().__init__(split, classes, labels, transforms, seed)

    def name(self, item: int) -> str:
        return os.fsdecode(self.files[item])

    def load(self, item: int) -> np.ndarray:
        return read_image(self.name(item), self.max_pixels)


@DATASETS.register_module()
class ImageFolder(ImageFiles):
    """Pictures, a folder for each class: `<root>/<train|val|test>/<class>/*` (ImageNet's layout),
    `<root>/<class>/<train|val|test>/*`, or `<root>/<class>/*` (EuroSAT's), of which a share is held out. Classes
    are the folders' names in order; files may lie in folders below (see `attlas.data.find_files`).

    Args:
        split: 'train', 'val', 'test' or 'all'. Where a share is held out, it is 'val' and 'test' alike.
        test_share: the share of each class that is held out where the folders do not say; the choice depends only on
            the files' names.
        in_memory: decode everything at once and keep it; for small pictures (EuroSAT: 330 MB).
        max_pixels: as of `ImageFiles`.
    """

    LAYOUT = "<train|val|test>/<class>/<picture>, <class>/<train|val|test>/<picture>, or <class>/<picture>."

    def __init__(
        self,
        root,
        split: str = "train",
        transforms=(),
        seed: int = 0,
        test_share: float = 0.2,
        in_memory: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
        one_of("ImageFolder.split", split, (*SPLITS, "all"))
        root = existing_root("ImageFolder", root, self.LAYOUT)
        classes, files, labels = find_files("ImageFolder", root, split, SUFFIXES, self.LAYOUT, test_share)
        super().__init__(split, classes, files, labels, transforms, seed, max_pixels)
        self.kept = [read_image(self.name(item), max_pixels) for item in range(len(self))] if in_memory else None

    def load(self, item: int) -> np.ndarray:
        return super().load(item) if self.kept is None else self.kept[item].copy()


MOST_LABEL = 9_999_999
NAME_THEM = "Name the classes yourself: classes=[...]."


def read_list(path: Path) -> list[tuple[str, int]]:
    """Paths and labels of a text file (UTF-8) whose lines are `path label`; a path may hold spaces, a line be empty.

    Raises:
        ValueError: names the line that is something else, or whose path would leave the folder that it is relative to:
            begins at a root or a drive, or holds `..` or a zero byte.
    """
    found = []
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n"), start=1):
        if not line.strip():
            continue
        name, label = [*line.strip().rsplit(None, 1), ""][:2]
        if not (label.isascii() and label.isdecimal() and len(label) <= len(str(MOST_LABEL))):
            raise ValueError(
                f"{printable(path)}, line {number}: a path and a label from 0 to {MOST_LABEL:,} were expected, got "
                f"{printable(line.strip())!r}."
            )
        shape = PureWindowsPath(name)  # which knows the separators of all systems
        if shape.anchor or ".." in shape.parts or "\0" in name:
            raise ValueError(f"{printable(path)}, line {number}: {printable(name)!r} leaves the root.")
        found.append((name, int(label)))
    return found


def folder_classes(path: Path, listed: Sequence[tuple[str, int]]) -> list[str]:
    """Names of the classes of a list: of the folders in which the pictures of each label lie.

    Raises:
        ValueError: a label has no pictures, or some of two folders, or its folder has no name or is another label's.
    """
    folders: dict[int, str] = {}
    for name, label in listed:
        folder = PurePosixPath(name).parent.name
        if folders.setdefault(label, folder) != folder:
            raise ValueError(
                f"{printable(path)}: label {label} is of the folders {printable(folders[label])!r} and "
                f"{printable(folder)!r}, so neither names the class. {NAME_THEM}"
            )
    if "" in folders.values() or len({*folders.values()}) < len(folders):
        raise ValueError(f"{printable(path)}: not every label has a folder of its own that names it. {NAME_THEM}")
    if missing := [label for label in range(len(folders)) if label not in folders]:
        raise ValueError(f"{printable(path)}: label {missing[0]} has no picture to name its class by. {NAME_THEM}")
    return [folders[label] for label in sorted(folders)]


@DATASETS.register_module()
class ImageList(ImageFiles):
    """Pictures that a text file lists, by lines `path label` whose paths are relative to the root (DomainNet's layout:
    `clipart/axe/clipart_011_000012.jpg 11` in `clipart_train.txt`). A path that leaves the root is refused; links
    inside it are followed.

    Args:
        root: folder below which the paths lie.
        file: the list, itself a path below the root, or from anywhere.
        classes: names of the classes in the order of the labels. By default those of the folders that hold the
            pictures; then the list must have a picture of each label, all of one folder.
        max_pixels: as of `ImageFiles`.
    """

    def __init__(
        self,
        root,
        file,
        transforms=(),
        seed: int = 0,
        classes: Sequence[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        if classes is not None and (isinstance(classes, str) or not all(isinstance(name, str) for name in classes)):
            raise TypeError(f"ImageList.classes is {classes!r}; it must be a sequence of names.")
        if classes is not None and len({*classes}) < len(classes):
            raise ValueError(f"ImageList.classes has a name twice: {classes!r}")
        root = existing_root("ImageList", root, "the list of the pictures, and the folders that it names.")
        path = root / Path(file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"ImageList: the list {printable(path)} is missing. {near_files(path)}")
        listed = read_list(path)
        if not listed:
            raise ValueError(f"ImageList: the list {printable(path)} is empty.")
        labels = np.array([label for _, label in listed], np.int64)
        classes = folder_classes(path, listed) if classes is None else classes
        check_labels(path, labels, len(classes))
        files = [os.path.join(root, name) for name, _ in listed]
        self.list = path
        super().__init__(path.stem, classes, files, labels, transforms, seed, max_pixels)

    def load(self, item: int) -> np.ndarray:
        try:
            return super().load(item)
        except FileNotFoundError as error:
            path = Path(self.name(item))
            raise FileNotFoundError(
                f"{printable(self.list)} lists {printable(path)}, which is missing. {near_files(path)}"
            ) from error


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def read_cifar(version: int, root: Path, names: Sequence[str], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N, L) of files of the binary version: records of L bytes, each a label below
    one of the L `counts`, then 3,072 bytes (3, 32, 32)."""
    records, size = [], len(counts) + 3072
    for path in (root / name for name in names):
        if not path.is_file():
            pickled = root / ("data_batch_1" if version == 10 else "train")
            inside = (
                root / (f"cifar-{version}-batches-py" if version == 10 else f"cifar-{version}-python") / pickled.name
            )
            hint = "Here lies the pickled version, and nothing is ever unpickled. "
            raise FileNotFoundError(
                f"CIFAR{version}: {path} is missing. {hint if pickled.is_file() or inside.is_file() else ''}Get the "
                f"binary version: cifar-{version}-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
            )
        content = np.fromfile(path, np.uint8)
        if len(content) == 0 or len(content) % size:
            raise ValueError(f"{path} has {len(content)} bytes, not a multiple of {size}: it is broken.")
        records.append(content.reshape(-1, size))
        for column, count in enumerate(counts):
            check_labels(path, records[-1][:, column], count)
    table = np.concatenate(records)
    return table[:, len(counts) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), table[:, : len(counts)]


@DATASETS.register_module()
class CIFAR10(ImageArrays):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 images of 32 x 32. `root` is `cifar-10-batches-bin` (the binary
    version) or holds it."""

    CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0):
        one_of("CIFAR10.split", split, tuple(self.FILES))
        root = existing_root("CIFAR10", root, "data_batch_1.bin to data_batch_5.bin and test_batch.bin.")
        folder = root / "cifar-10-batches-bin"
        images, labels = read_cifar(10, folder if folder.is_dir() else root, self.FILES[split], (10,))
        super().__init__(split, self.CLASSES, images, labels[:, 0], transforms, seed)


@DATASETS.register_module()
class CIFAR100(ImageArrays):
    """CIFAR-100 (Krizhevsky, 2009): as CIFAR-10, in 100 'fine' classes or their 20 'coarse' ones. `root` is
    `cifar-100-binary` or holds it."""

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0, labels: str = "fine"):
        one_of("CIFAR100.split", split, ("train", "test"))
        one_of("CIFAR100.labels", labels, ("coarse", "fine"))
        root = existing_root("CIFAR100", root, "train.bin, test.bin, fine_label_names.txt and coarse_label_names.txt.")
        folder = root / "cifar-100-binary"
        root = folder if folder.is_dir() else root
        counts = {"coarse": 20, "fine": 100}
        images, table = read_cifar(100, root, (f"{split}.bin",), tuple(counts.values()))
        path = root / f"{labels}_label_names.txt"
        if not path.is_file():
            raise FileNotFoundError(f"CIFAR100: {path} is missing; it lies in the archive beside {split}.bin.")
        names = path.read_text(errors="replace").split()
        if len(names) != counts[labels]:
            raise ValueError(f"{path} lists {len(names)} names; {counts[labels]} were expected.")
        column = list(counts).index(labels)
        super().__init__(split, names, images, table[:, column], transforms, seed)


# --- MNIST -----------------------------------------------------------------------------------------------------------


IDX_BYTES = 1 << 30  # most that a file may declare; MNIST has 47 MB, EMNIST 0.6 GB


def read_idx(path: Path, magic: int) -> np.ndarray:
    """An IDX file of bytes, also where it is packed: a big-endian magic number (2051: (N, H, W); 2049: (N,)), the
    lengths of the axes, the bytes. Of a packed file no more is unpacked than its header declares."""
    axes = magic & 255
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * axes)
            found, *shape = struct.unpack(f">{len(header) // 4}I", header[: len(header) // 4 * 4]) or (None,)
            if found != magic:
                shown = f"a file of {len(header)} bytes" if found is None else found
                raise ValueError(f"{path}: magic number {magic} of an IDX file was expected, not {shown}.")
            size = math.prod(shape)
            if len(shape) == axes and size > IDX_BYTES:
                raise ValueError(f"{path} says that its shape is {tuple(shape)}; {IDX_BYTES:,} bytes are the most.")
            content = file.read(size + 1) if len(shape) == axes else b""  # one more: it must not be there
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(shape) < axes or len(content) != size:
        held = f"more than {size}" if len(content) > size else len(content)
        raise ValueError(f"{path} says that its shape is {tuple(shape)}, and {held} bytes follow its header.")
    return np.frombuffer(content, np.uint8).reshape(shape)


@DATASETS.register_module()
class MNIST(ImageArrays):
    """MNIST (LeCun et al., 1998): 60,000 + 10,000 grey digits of 28 x 28 in IDX files, packed (.gz) or not."""

    CLASSES: tuple[str, ...] = tuple("0123456789")
    HINT = "Get the four files of the data set."

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0):
        dataset = type(self).__name__
        one_of(f"{dataset}.split", split, ("train", "test"))
        part = {"train": "train", "test": "t10k"}[split]
        arrays = []
        for kind, magic in (("images-idx3", 2051), ("labels-idx1", 2049)):
            plain = Path(root).expanduser() / f"{part}-{kind}-ubyte"
            path = plain if plain.is_file() else Path(f"{plain}.gz")
            if not path.is_file():
                raise FileNotFoundError(f"{dataset}: {plain} is missing, packed (.gz) or not. {self.HINT}")
            arrays.append(read_idx(path, magic))
        images, labels = arrays
        check_labels(path, labels, len(self.CLASSES))
        if len(images) != len(labels):
            raise ValueError(f"{dataset}: {len(images)} images and {len(labels)} labels lie in {root} for {split!r}.")
        super().__init__(split, self.CLASSES, images, labels, transforms, seed)


@DATASETS.register_module()
class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao et al., 2017, MIT licence): 60,000 + 10,000 grey pictures of clothes, 28 x 28, in MNIST's
    files. Debian and Ubuntu install them: `apt-get install dataset-fashion-mnist`."""

    CLASSES = (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip
    HINT = (
        "On Debian and Ubuntu: apt-get install dataset-fashion-mnist (then root is /usr/share/datasets/fashion-mnist)."
    )

    def __init__(self, root="/usr/share/datasets/fashion-mnist", split: str = "train", transforms=(), seed: int = 0):
        super().__init__(root, split, transforms, seed)


# --- SVHN ------------------------------------------------------------------------------------------------------------


MAT_BYTES = 1 << 31  # most that an array of a file may declare; SVHN's largest has 1.6 GB
MAT_COMPRESSED, MAT_MATRIX, MAT_UINT8, MAT_UINT8_CLASS = 15, 14, 2, 9


def read_mat(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of bytes of a MATLAB file of version 5, by name. Of a packed array no more is unpacked than declared.

    Raises:
        ValueError: the file is none, or broken, or lacks an array, or has another kind of array by that name.
    """
    content = path.read_bytes()
    if len(content) < 128 or content[126:128] != b"IM":
        raise ValueError(f"{path} is not a MATLAB file of version 5 (little-endian).")
    found: dict[str, np.ndarray] = {}
    place = 128
    try:
        while place < len(content):
            kind, size = struct.unpack_from("<2I", content, place)
            body = memoryview(content)[place + 8 : place + 8 + size]
            place += 8 + size
            if len(body) < size:
                raise ValueError("an array is cut off")
            if kind == MAT_COMPRESSED:
                unpacker = zlib.decompressobj()
                kind, size = struct.unpack("<2I", unpacker.decompress(body, 8))
                if size > MAT_BYTES:
                    raise ValueError(f"an array declares {size:,} bytes; {MAT_BYTES:,} are the most")
                body = memoryview(unpacker.decompress(unpacker.unconsumed_tail, size)) if size else body[:0]
            if kind == MAT_MATRIX:
                name, array = _mat_array(body)
                if name in names and array is not None:
                    found[name] = array
    except (struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is a broken MATLAB file: {printable(error)}") from error
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"{path} has no array {missing[0]!r} of bytes; it has {printable(', '.join(found)) or 'none'}."
        )
    return found


def _mat_array(body: memoryview) -> tuple[str, np.ndarray | None]:
    """The name and the array of a matrix element; None for the array of another type than uint8."""
    parts: list[tuple[int, memoryview]] = []
    place = 0
    while place < len(body) and len(parts) < 4:  # flags, lengths of the axes, name, values
        kind, size = struct.unpack_from("<2I", body, place)
        if kind >> 16:  # four bytes at most lie in the tag itself
            kind, size, begin, place = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            begin, place = place + 8, place + 8 + -(-size // 8) * 8
        part = body[begin : begin + size]
        if len(part) < size:
            raise ValueError("an array is cut off")
        parts.append((kind, part))
    if len(parts) < 3:
        raise ValueError("an array has no name")
    flags, shape = struct.unpack_from("<I", parts[0][1])[0], struct.unpack(f"<{len(parts[1][1]) // 4}i", parts[1][1])
    name = bytes(parts[2][1]).decode("latin-1")
    if flags & 0xFF != MAT_UINT8_CLASS or len(parts) < 4 or parts[3][0] != MAT_UINT8:
        return name, None
    if min(shape, default=-1) < 0 or math.prod(shape) != len(parts[3][1]):
        raise ValueError(f"an array of shape {shape} has {len(parts[3][1])} values")
    return name, np.frombuffer(parts[3][1], np.uint8).reshape(shape, order="F")


@DATASETS.register_module()
class SVHN(ImageArrays):
    """SVHN (Netzer et al., 2011): digits of house numbers, 73,257 + 26,032 images of 32 x 32 and 531,131 'extra' ones,
    in the cropped format (`train_32x32.mat`, `test_32x32.mat`, `extra_32x32.mat`)."""

    CLASSES = tuple("0123456789")

    def __init__(self, root, split: str = "train", transforms=(), seed: int = 0):
        one_of("SVHN.split", split, ("train", "test", "extra"))
        path = existing_root("SVHN", root, "train_32x32.mat and test_32x32.mat.") / f"{split}_32x32.mat"
        if not path.is_file():
            raise FileNotFoundError(f"SVHN: {path} is missing. Get it: http://ufldl.stanford.edu/housenumbers")
        arrays = read_mat(path, ("X", "y"))
        images, labels = arrays["X"], arrays["y"].ravel()
        if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.shape[3] != len(labels):
            raise ValueError(f"{path}: X {images.shape} and y {arrays['y'].shape} are not (32, 32, 3, N) and (N, 1).")
        if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
            raise ValueError(f"{path}: labels 1 to 10 were expected, not {labels.min()} to {labels.max()}.")
        super().__init__(
            split, self.CLASSES, images.transpose(3, 0, 1, 2), labels % 10, transforms, seed
        )  # 10 is a zero
