"""What the data sets of every floor share: a base, repeatable draws, pipelines, splits, checks of arguments."""

import copy
import difflib
import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose, DefaultSampler
from torch.utils.data import Dataset

from .registry import DATA_SAMPLERS, TRANSFORMS

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


def existing_root(dataset: str, root: str | Path, layout: str) -> Path:
    """`root` as a folder that exists, or an error that says what the data set looks for in it."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{dataset}: root {str(root)!r} is not a folder. Expected there: {layout}")
    return path


def held_out(names: Sequence[str], share: float) -> set[str]:
    """A share of `names`, at least one of several, by the order of their hashes: a choice that only names decide."""
    if not 0 <= share <= 1:
        raise ValueError(f"test_share is {share!r}; it must lie in [0, 1].")
    count = round(share * len(names))
    if share > 0 and len(names) > 1:
        count = max(count, 1)
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


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


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """MMEngine's DefaultSampler, with epoch * len(dataset) added to its indices: every epoch draws every item afresh,
    the same with any number of workers and after a resumption."""

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self.dataset)
        return (start + index for index in super().__iter__())
