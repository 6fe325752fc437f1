"""Furnished rooms as clouds of labelled points, in files that `attlas.pointnets.scenes.SegmentedClouds` reads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..data import check_seed, positive
from ..files import replacing
from .rooms import LABELS, SPLITS, Room


def write_room_clouds(
    root: str | Path,
    train: int = 96,
    test: int = 32,
    points: int = 40_000,
    seed: int = 0,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Write `classes.txt`, and a cloud of each room, as `train/000007.npz`.

    Args:
        root: folder, which is made; one that holds clouds already, of whatever settings, is refused.
        train: number of rooms to train on.
        test: number of rooms to test on, of other furniture.
        points: of each room.
        seed: of the series of rooms.
        after: called after each room.

    Raises:
        FileExistsError: there are clouds already.
    """
    root = Path(root).expanduser()
    for argument, value in (("train", train), ("test", test), ("points", points)):
        positive(argument, value)
    check_seed(seed)
    finished = (root / "classes.txt").exists()
    if finished or any(any((root / split).glob("*.npz")) for split in SPLITS):
        which = "" if finished else ", of a run that did not finish"
        raise FileExistsError(f"{root} holds clouds already{which}. Remove it, or name another folder.")
    for split, count in zip(SPLITS, (train, test)):
        (root / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            cloud = Room(split, seed, number).points(points)
            color = (255 * cloud["color"]).round().astype(np.uint8)
            with replacing(root / split / f"{number:06d}.npz") as temporary:
                np.savez(temporary, pos=cloud["pos"], normal=cloud["normal"], point_label=cloud["label"], color=color)
            after()
    with replacing(root / "classes.txt") as temporary:  # last: it says that the folder is finished
        temporary.write_text("\n".join(LABELS) + "\n")
