"""What the data sets of every floor share: repeatable draws, pipelines, splits, and arguments that are checked."""

import difflib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose, DefaultSampler

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


@contextmanager
def drawing(name: str, *key: int) -> Iterator[None]:
    """`seeded(*key)`, in which a ValueError says that `name` was being drawn."""
    with seeded(*key):
        try:
            yield
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


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """MMEngine's DefaultSampler, with epoch * len(dataset) added to its indices: every epoch draws every item afresh,
    the same with any number of workers and after a resumption."""

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self.dataset)
        return (start + index for index in super().__iter__())
