"""What the data sets of every floor share: a base, repeatable draws, pipelines, folders, checks of arguments."""

import copy
import difflib
import hashlib
import os
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import Compose, DefaultSampler, InfiniteSampler
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch.utils.data import Dataset

from .files import near_folders, printable
from .registry import DATA_SAMPLERS, DATASETS, TRANSFORMS

UP_AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


def one_of(argument: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`; otherwise a ValueError that names the argument and the nearest spelling."""
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value).lower(), [c.lower() for c in choices], n=1)
    hint = "".join(f" Did you mean {c!r}?" for c in choices if near and c.lower() == near[0])
    raise ValueError(f"{argument} is {value!r}; it may be {', '.join(map(repr, choices))}.{hint}")


def positive(argument: str, value: int) -> int:
    """`value` if it is a positive integer; otherwise a ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument} is {value!r}; it must be a positive integer.")
    return value


def check_seed(seed: int) -> int:
    """`seed` if it is an integer of at least 0; otherwise a ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}; it must be an integer of at least 0.")
    return seed


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds `random`, NumPy's and torch's (CPU) global generators from `key` (integers >= 0), and afterwards gives the
    caller's generators back as they were. All three, because transforms of PyG and of users draw from any of them."""
    caller = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(int(seeds[2]))  # torch.manual_seed would reseed a GPU's generator as well
    try:
        yield
    finally:
        random.setstate(caller[0])
        np.random.set_state(caller[1])
        torch.set_rng_state(caller[2])


def drawn(transform: Callable[[Any], Any], data: Any, name: str, *key: int) -> Any:
    """`transform(data)` under generators seeded from `key`; a ValueError names what was being drawn."""
    with seeded(*key):
        try:
            return transform(data)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def build_transforms(transforms: Sequence[dict | Callable[[Any], Any]]) -> Compose:
    """One callable of a list of configs and callables."""
    for entry in transforms:
        if not isinstance(entry, Mapping) and not callable(entry):
            raise TypeError(f"transforms holds {entry!r}; its entries may be dict(type=...) or callables.")
    return Compose([TRANSFORMS.build(t) if isinstance(t, Mapping) else t for t in transforms])


AUTO = "auto"


def fill_classes(model: Any, count: Callable[[], int]) -> None:
    """Write the number of classes into every `num_classes='auto'` of the config of a model; changed in place.

    Args:
        count: gives the number; called where one is wanted.
    """
    if isinstance(model, dict):
        if model.get("num_classes") == AUTO:
            model["num_classes"] = count()
        model = list(model.values())
    for part in model if isinstance(model, (list, tuple)) else ():
        fill_classes(part, count)


def fill_classes_from_data(config: Any, split: str) -> None:
    """`fill_classes` for the model of a config, by the data of its loader of a split ('train' or 'test')."""
    dataset, scope = config[f"{split}_dataloader"]["dataset"], config.get("default_scope")
    fill_classes(config["model"], cache(lambda: count_classes(dataset, scope)))


def count_classes(dataset: Mapping, scope: str | None = None) -> int:
    """The number of classes of the data set that a config describes.

    Args:
        dataset: config of the data set.
        scope: library whose classes bare names mean (`default_scope` of the config).

    Raises:
        ValueError: the data set names no classes.
    """
    with DefaultScope.overwrite_default_scope(scope):
        classes = (getattr(DATASETS.build(dict(dataset)), "metainfo", None) or {}).get("classes")
    if not classes:
        raise ValueError(f"num_classes={AUTO!r}, but the data set ({dataset.get('type')}) names no classes.")
    return len(classes)


def existing_root(dataset: str, root: str | Path, layout: str) -> Path:
    """`root` as a folder that exists, or an error that says what the data set looks for in it."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"{dataset}: root {printable(root)!r} is not a folder. Expected there: {layout} {near_folders(path)}"
        )
    return path


def held_out(names: Sequence[str], share: float) -> set[str]:
    """A share of `names`, at least one of several, by the order of their hashes: a choice that only names decide."""
    if not 0 <= share <= 1:
        raise ValueError(f"test_share is {share!r}; it must lie in [0, 1].")
    count = round(share * len(names))
    if share > 0 and len(names) > 1:
        count = max(count, 1)
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


# --- folders ---------------------------------------------------------------------------------------------------------

# What people call the folders of the splits, in any case.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
NOT_DATA = (".", "__MACOSX", "@eaDir")  # how the folders begin that editors, archives and file servers leave


class Found(NamedTuple):
    """Files of a data set of folders: `files` (paths) with their `labels`, which count in `classes`."""

    classes: list[str]
    files: list[str]
    labels: list[int]


def folders(path: Path) -> list[str]:
    """Names of the folders in a folder, and of links to folders, in order; without those that hold no data."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(NOT_DATA))


def split_folders(root: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The folders 'train', 'val' and 'test' of `root`, by any name of `SPLITS`; {} where there are none.

    Raises:
        ValueError: two folders have names of one split, or other folders with data lie beside.
    """
    here = folders(root)
    named: dict[str, list[str]] = {split: [n for n in here if n.lower() in known] for split, known in SPLITS.items()}
    for split, names in named.items():
        if len(names) > 1:
            raise ValueError(f"{root} holds {_listed(names)}: which is the split {split!r}? Move the other elsewhere.")
    found = {split: root / names[0] for split, names in named.items() if names}
    others = [name for name in here if root / name not in found.values()]
    beside = [name for name in others if any(_walk(root / name, suffixes, [root]))] if found else []
    if beside:
        raise ValueError(
            f"{root} holds {_listed([path.name for path in found.values()])}, as splits are called, beside "
            f"{_listed(beside)}: are these splits or classes? Rename the one or move the other elsewhere."
        )
    return found


def find_files(
    dataset: str, root: Path, split: str, suffixes: Sequence[str], layout: str, test_share: float | None = None
) -> Found:
    """The files of a folder tree, a folder for each class: `<split>/<class>/`, `<class>/<split>/`, or, where
    `test_share` is given, `<class>/`, of which a share is held out. Files may lie in folders below these.

    The names of splits are those of `SPLITS`. Links are followed. Folders of `NOT_DATA` and hidden files are left out;
    what else is left out, one line of the log counts by suffix.

    Args:
        split: 'train', 'val', 'test', or 'all'. Where a share is held out, it is 'val' and 'test' alike.
        suffixes: the endings of files that are read, in lower case.

    Raises:
        ValueError: it is not certain which folders are the classes.
        FileNotFoundError: there is no such split, or no file in it.
    """
    parts = split_folders(root, suffixes)
    if parts and split not in (*parts, "all"):
        raise FileNotFoundError(f"{dataset}: {root} has no folder {split!r}; it has {_listed(list(parts.values()))}.")
    if not parts:
        _check_depth(dataset, root, suffixes)
    tops = {part: path for part, path in (parts or {"": root}).items() if split in (part, "all") or not part}
    of_part = {part: folders(path) for part, path in (parts or {"": root}).items()}
    classes = sorted(set(chain.from_iterable(of_part.values())))
    _check_spelling(root, classes, list(of_part.values()))

    left_out: Counter[str] = Counter()
    files: list[str] = []
    labels: list[int] = []
    for top in tops.values():
        _count_loose(top, suffixes, left_out)
    for label, name in enumerate(classes):
        found: list[str] = []
        for part, top in tops.items():
            if not (top / name).is_dir():
                continue
            inside = {} if part else split_folders(top / name, suffixes)
            if inside:
                _count_loose(top / name, suffixes, left_out)
            chosen = [path for p, path in inside.items() if split in (p, "all")] if inside else [top / name]
            shared = not part and not inside
            if shared and test_share is None:
                continue
            for folder in chosen:
                found += sorted(_walk(folder, suffixes, [root, top, top / name], left_out))
            if shared and test_share is not None and split != "all":
                names = [Path(path).relative_to(root).as_posix() for path in found]
                test = held_out(names, test_share)
                found = [path for path, name in zip(found, names) if (name in test) == (split != "train")]
        files += found
        labels += [label] * len(found)
    told = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items(), key=lambda item: (-item[1], item[0])))
    if not files:
        raise FileNotFoundError(
            f"{dataset}: {root} holds no file of split {split!r} ({len(classes)} class folders; read are "
            f"{' '.join(sorted(suffixes))}{f'; left out are {printable(told)}' if told else ''}). "
            f"Expected there: {layout}"
        )
    if told:
        _tell(f"{dataset} {root}, {split}: {len(files)} files in {len(classes)} classes; left out: {printable(told)}")
    return Found(classes, files, labels)


def first_split(dataset: Callable[[Any, str], Any], root: str | Path, splits: Sequence[str]) -> str:
    """The first of some splits that a data set of folders has: for configs, which test on 'val' where there is no
    'test'.

    Raises:
        FileNotFoundError: it has none of them.
    """
    for split in splits[:-1]:
        try:
            dataset(root, split)
        except FileNotFoundError:
            continue
        return split
    dataset(root, splits[-1])
    return splits[-1]


def _walk(
    folder: Path, suffixes: Sequence[str], above: Sequence[Path], left_out: Counter[str] | None = None
) -> Iterator[str]:
    """Paths of the files below a folder that end in one of `suffixes`. Links to folders are followed, to none of them
    twice and not to those `above`. Of a million files none is opened or asked for its status."""
    left_out = Counter() if left_out is None else left_out
    endings = tuple(suffixes)
    seen = {_identity(path) for path in above if path != folder}
    for top, inside, names in os.walk(folder, followlinks=True):
        key = _identity(top)
        if key in seen:
            left_out["folders that were read already, by a link"] += 1
            inside.clear()
            continue
        seen.add(key)
        if hidden := sum(name.startswith(NOT_DATA) for name in inside):
            left_out["hidden folders"] += hidden
        inside[:] = sorted(name for name in inside if not name.startswith(NOT_DATA))
        for name in names:
            if name[0] == ".":
                continue
            if name.lower().endswith(endings):
                yield f"{top}/{name}"
            else:
                left_out[os.path.splitext(name)[1].lower() or "without a suffix"] += 1


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _count_loose(folder: Path, suffixes: Sequence[str], left_out: Counter[str]) -> None:
    """Count the files that would be read, but lie where only folders are expected."""
    with os.scandir(folder) as entries:
        loose = sum(e.name.lower().endswith(tuple(suffixes)) and e.name[0] != "." and not e.is_dir() for e in entries)
    if loose:
        left_out["in no folder of a class or split"] += loose


def _check_depth(dataset: str, root: Path, suffixes: Sequence[str]) -> None:
    """Refuse a root that holds nothing but the folder of the data set, as an unpacked archive does."""
    here = folders(root)
    if len(here) != 1:
        return
    inner = root / here[0]
    below = folders(inner)
    parts = [name for name in below if any(name.lower() in known for known in SPLITS.values())]
    loose: Counter[str] = Counter()
    _count_loose(inner, suffixes, loose)
    if any(folders(inner / name) for name in parts) or (len(below) > 1 and not parts and not loose):
        raise ValueError(
            f"{dataset}: {root} holds one folder, {here[0]!r}, and that holds {_listed(below)}. As one class? If not, "
            f"root is one folder further down: {inner}"
        )


def _check_spelling(root: Path, classes: Sequence[str], of_part: Sequence[Sequence[str]]) -> None:
    """Refuse classes that the splits spell in upper and lower case."""
    spelled: dict[str, list[str]] = {}
    for name in classes:
        spelled.setdefault(name.casefold(), []).append(name)
    for names in spelled.values():
        if len(names) > 1 and not any(set(names) <= set(part) for part in of_part):
            raise ValueError(f"{root}: the splits spell one class {_listed(names)}. Rename one of these folders.")


def _listed(names: Sequence[Any], most: int = 6) -> str:
    shown = [repr(printable(getattr(name, "name", name))) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


@cache  # a config counts its classes with the data set that the training builds again
def _tell(text: str) -> None:
    print_log(text, logger="current")


# --- the base --------------------------------------------------------------------------------------------------------


class Items(ABC, Dataset):
    """Base of the data sets of every floor: items that are read by number and transformed at each draw.

    A draw depends on nothing but (seed, epoch, item): `dataset[item + epoch * len(dataset)]` is the same in any process
    and order, and `EpochSampler` asks for just that. `dataset[index]` with a slice, or with an array of numbers or
    booleans, is a data set of these items, whose draws stay what they were.

    A subclass brings `get`, and `name` where its items have names.

    Args:
        split: part of the published data ("train", ...).
        size: number of items; at least 1.
        classes: names of the classes; () where there are none.
        transforms: configs or callables, applied in order at each draw.
        seed: chooses another series of draws (>= 0).
    """

    def __init__(self, split: str, size: int, classes: Sequence[str], transforms, seed: int):
        if size < 1:
            raise ValueError(f"{type(self).__name__}: split {split!r} is empty.")
        self.split, self.classes, self.items = split, tuple(classes), np.arange(size)
        self.transform, self.seed = build_transforms(transforms), check_seed(seed)

    @abstractmethod
    def get(self, item: int) -> Any:
        """The item as it was read, without transforms."""

    def name(self, item: int) -> str:
        """What errors call an item."""
        return f"{type(self).__name__} {self.split}[{item}]"

    def group(self, item: int) -> str:
        """What several items may show: the object that is seen from several sides; of other data sets the item."""
        return self.name(item)

    def draw(self, epoch: int, item: int) -> Any:
        """The item as it is in an epoch."""
        return drawn(self.transform, self.get(item), self.name(item), self.seed, epoch, item)

    @property
    def metainfo(self) -> dict:
        """What MMEngine hands to metrics and visualizers."""
        return dict(classes=self.classes)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        if not isinstance(index, (int, np.integer)):
            part = copy.copy(self)
            part.items = self.items[index]
            return part
        if index < -len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} items")
        epoch, place = divmod(int(index), len(self)) if index >= 0 else (0, int(index))
        return self.draw(epoch, int(self.items[place]))

    def __iter__(self) -> Iterator:  # Python's own iteration would wait for an IndexError, and epochs have no end
        return (self[place] for place in range(len(self)))


@DATASETS.register_module()
class KnownClasses(Items):
    """The items of some classes of a data set, whose labels count in these classes alone; items of other classes are
    left out or, as those of `unknown`, come with the label -1. Draws stay what they are in the data set.

    Args:
        dataset: data set, or its config, whose items are dicts with a "label" or objects with a `y`.
        classes: names of the known classes, in the order of their labels.
        unknown: names of classes whose items are kept as unknown, or 'others' for all that are not known.
        share: share of the objects of each class that is held out; the choice depends only on their names, and all
            views of an object (`Items.group`) go together.
        part: 'all', or with a `share` the 'rest' or what is 'held_out'.
    """

    def __init__(
        self,
        dataset: Any,
        classes: Sequence[str],
        unknown: Sequence[str] | str = (),
        share: float = 0.0,
        part: str = "all",
    ):
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        own = getattr(self.dataset, "labels", None)
        if own is None:
            raise ValueError(f"KnownClasses: the items of {type(self.dataset).__name__} have no labels to choose by.")
        names = tuple(self.dataset.classes)
        known = self._names("classes", classes, names)
        others = tuple(name for name in names if name not in known)
        strange = others if unknown == "others" else self._names("unknown", unknown, names)
        if not known:
            raise ValueError(f"KnownClasses.classes is empty; it may name {', '.join(map(repr, names))}.")
        if both := [name for name in strange if name in known]:
            raise ValueError(f"KnownClasses: {both[0]!r} is in classes and in unknown.")
        one_of("KnownClasses.part", part, ("all", "rest", "held_out"))
        if (part == "all") != (share == 0):
            raise ValueError(
                f"KnownClasses.part={part!r} with share={share!r}: a part is of a share, and a share has parts."
            )
        new = np.full(len(names), -2)
        new[[names.index(name) for name in strange]] = -1
        new[[names.index(name) for name in known]] = range(len(known))
        labels = new[np.asarray(own)[self.dataset.items]]
        kept = labels >= -1
        if part != "all":
            kept &= self._held_out(share) == (part == "held_out")
        self.places, self.labels = np.flatnonzero(kept), labels[kept]
        super().__init__(self.dataset.split, len(self.places), known, (), self.dataset.seed)
        self.transform = self.dataset.transform

    @staticmethod
    def _names(argument: str, given: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
        if isinstance(given, str):
            raise TypeError(f"KnownClasses.{argument} is {given!r}; it must be a sequence of names.")
        for name in given:
            one_of(f"KnownClasses.{argument}", name, names)
        if len({*given}) < len(given):
            raise ValueError(f"KnownClasses.{argument} has a name twice: {tuple(given)!r}")
        return tuple(given)

    def _held_out(self, share: float) -> np.ndarray:
        own, groups = np.asarray(self.dataset.labels), [self.dataset.group(int(item)) for item in self.dataset.items]
        of_class: dict[int, set[str]] = {}
        for item, group in zip(self.dataset.items, groups):
            of_class.setdefault(int(own[item]), set()).add(group)
        chosen = {label: held_out(sorted(found), share) for label, found in of_class.items()}
        return np.array([group in chosen[int(own[item])] for item, group in zip(self.dataset.items, groups)])

    def _item(self, item: int) -> int:
        return int(self.dataset.items[self.places[item]])

    def _relabeled(self, data: Any, item: int) -> Any:
        label = int(self.labels[item])
        if isinstance(data, Mapping):
            return {**data, "label": label}
        data.y = torch.full_like(data.y, label)
        return data

    def name(self, item: int) -> str:
        return self.dataset.name(self._item(item))

    def group(self, item: int) -> str:
        return self.dataset.group(self._item(item))

    def get(self, item: int) -> Any:
        return self._relabeled(self.dataset.get(self._item(item)), item)

    def draw(self, epoch: int, item: int) -> Any:
        return self._relabeled(self.dataset[int(self.places[item]) + epoch * len(self.dataset)], item)


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """MMEngine's DefaultSampler, with epoch * len(dataset) added to its indices: every epoch draws every item afresh,
    the same with any number of workers and after a resumption."""

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self.dataset)
        return (start + index for index in super().__iter__())


@DATA_SAMPLERS.register_module()
class EndlessSampler(InfiniteSampler):
    """`EpochSampler` for trainings that count iterations: MMEngine's InfiniteSampler, with epoch * len(dataset) added
    to its indices."""

    def _infinite_indices(self) -> Iterator[int]:
        for number, index in enumerate(super()._infinite_indices()):
            yield number // self.size * self.size + index


class SeededDraws:
    """For data sets of MMEngine's BaseDataset, stated before that as a base: every draw depends on nothing but (seed,
    epoch, item), as of `Items`.

    Args:
        seed: seed of the draws. The other arguments are those of the data set.
    """

    __len__: Callable[[], int]

    def __init__(self, *args, seed: int = 0, **options):
        self.seed = check_seed(seed)
        super().__init__(*args, **options)

    def __getitem__(self, index: int) -> dict:
        if index < 0:  # from the end, as of a list
            index += len(self)
            if index < 0:
                raise IndexError(f"item {index - len(self)}, and there are {len(self)}")
        with seeded(self.seed, index):
            return super().__getitem__(index % len(self))  # type: ignore[misc]

    def __iter__(self) -> Iterator[dict]:  # as of `Items`
        return (self[place] for place in range(len(self)))

    def get_data_info(self, index: int) -> dict:
        return super().get_data_info(index % len(self))  # type: ignore[misc]
