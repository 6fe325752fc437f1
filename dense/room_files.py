"""Furnished rooms as files, made once: images, COCO's boxes and masks, mmseg's semantic maps, and maps of instances.

    annotations/instances_train.json    COCO's format: an annotation for each object of which enough is seen
    img_dir/train/000007.jpg            room 7, seen by its camera 0
    ann_dir/train/000007.png            indices into LABELS: the 14 classes, floor, wall, ceiling
    ins_dir/train/000007.png            `View.instances`

A folder holds the rooms of one setting, which its name says. Several processes make it, and whoever finds it unfinished
goes on with it, also beside others. Every file is written whole. The map of instances is a room's last file, and says
that the room is there; the annotations are the folder's last, and say that it is finished.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import furniture
from ..data import check_seed, one_of, positive
from ..files import cache_folder, printable, replacing, sweep
from .masks import encoded

MAKER = 1  # to be raised whenever rooms come out otherwise: folders made by another number are not used
SPLITS = ("train", "test")
STRUCTURE = ("floor", "wall", "ceiling")
LABELS = (*furniture.CLASSES, *STRUCTURE)
FOLDERS = ("img_dir", "ann_dir", "ins_dir")
QUALITY = 95  # of the JPEG files


@dataclass(frozen=True)
class Setting:
    """Which rooms a folder holds: numbers 0 to `count` - 1 of a series, in pixels."""

    split: str
    count: int
    width: int
    height: int
    seed: int

    @property
    def name(self) -> str:
        key = hashlib.sha256(f"{MAKER}|{QUALITY}|{self}|".encode() + furniture.ASSET.read_bytes()).hexdigest()[:12]
        return f"{self.split}-{self.count}x{self.width}x{self.height}-seed{self.seed}-{key}"


def room_folder(
    split: str = "train", count: int = 600, size: Sequence[int] = (320, 240), seed: int = 0, cache=None, workers=None
) -> Path:
    """The folder of some rooms; what is missing there is made first, with a progress bar.

    Args:
        split: 'train' or 'test', whose furniture stands in the rooms.
        count: number of rooms, each in one image.
        size: width and height of the images in pixels.
        seed: chooses another series of rooms (>= 0).
        cache: folder for all that Attlas keeps; `attlas.files.cache_folder()` unless given.
        workers: number of processes that make rooms; 0 makes them in this one. All cores unless given.

    Raises:
        ValueError: an argument is not what it may be.
        OSError: the folder cannot be made, or the disk is full.
        RuntimeError: a process that makes rooms failed; with its last words.
    """
    width, height = checked(split, size)
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise ValueError(f"workers is {workers!r}; it must be an integer of at least 0.")
    setting = Setting(split, positive("count", count), width, height, check_seed(seed))
    folder = (Path(cache).expanduser() if cache else cache_folder()) / "furnished_rooms" / setting.name
    if not annotations(folder, split).is_file():
        _make(folder, setting, workers)
    return folder


def checked(split: str, size: Sequence[int]) -> tuple[int, int]:
    """Width and height of `size`. ValueError where it is no pair of positive integers, or `split` is none of SPLITS."""
    one_of("split", split, SPLITS)
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ValueError(f"size is {size!r}; it must be (width, height).")
    width, height = (positive(f"size[{place}]", side) for place, side in enumerate(size))
    return width, height


def annotations(folder: Path, split: str) -> Path:
    """The file of COCO's format in a folder of rooms."""
    return folder / "annotations" / f"instances_{split}.json"


def _make(folder: Path, setting: Setting, workers: int | None) -> None:
    for name in FOLDERS:
        try:
            (folder / name / setting.split).mkdir(parents=True, exist_ok=True)
        except OSError as error:  # before the work, not after it
            raise OSError(f"{folder} cannot be made ({error}); name another folder in $ATTLAS_CACHE.") from error
        sweep(folder / name / setting.split)
    missing = partial(_missing, folder, setting)
    make_files(folder, f"{setting.split} rooms", setting.count, missing, __name__, astuple(setting), workers)
    _annotate(folder, setting)


def _file(folder: Path, kind: str, setting: Setting, number: int) -> Path:
    return folder / kind / setting.split / f"{number:06d}{'.jpg' if kind == 'img_dir' else '.png'}"


def _missing(folder: Path, setting: Setting) -> list[int]:
    """The rooms that are not there yet."""
    there = {path.name for path in os.scandir(folder / "ins_dir" / setting.split)}
    return [number for number in range(setting.count) if f"{number:06d}.png" not in there]


# --- rooms -----------------------------------------------------------------------------------------------------------


def write_rooms(folder: Path, setting: Setting, after: Callable[[], object]) -> None:
    """Make the rooms that are missing, calling `after` each. Every process takes them in an order of its own, so that
    several share the work without a word."""
    from .rooms import Room  # here, because Open3D takes a second, and finished folders need none of it

    for number in np.random.default_rng(os.getpid()).permutation(_missing(folder, setting)):
        if not _file(folder, "ins_dir", setting, number).exists():
            room = Room(setting.split, setting.seed, int(number))
            view = room.see(room.camera(), setting.width, setting.height)
            pictures = (view.image[..., ::-1], view.labels, view.instances)
            for kind, picture in zip(FOLDERS, pictures):
                path = _file(folder, kind, setting, number)
                _, content = cv2.imencode(path.suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
                with replacing(path) as temporary:
                    temporary.write_bytes(content.tobytes())
        after()


def work(folder: str, setting: Sequence[Any], parent: int | None, after: Callable[[], object] = lambda: None) -> None:
    """Make the rooms that are missing; see `make_files`."""

    def check() -> None:
        after()
        if orphaned(parent):
            sys.exit()

    write_rooms(Path(folder), Setting(*setting), check)


# --- several processes -----------------------------------------------------------------------------------------------


def make_files(
    folder: Path,
    what: str,
    total: int,
    missing: Callable[[], Sequence[int]],
    module: str,
    setting: Sequence[Any],
    workers: int | None,
) -> None:
    """Have processes make what is missing in a folder, with a progress bar.

    They begin anew: as copies of this one (fork) they would hang in Open3D's threads, and multiprocessing's way to
    begin anew (spawn) runs the script of a user again.

    Args:
        folder: where the files go.
        what: words of the bar.
        total: number of what is made in all.
        missing: gives the numbers of what is not there yet.
        module: name of a module with `work(folder, setting, parent, after)`, which makes what is missing, calls `after`
            each time, and ends when the process `parent`, if that is a number, no longer is its parent.
        setting: argument of `work`, of JSON's types.
        workers: number of processes; 0 makes all in this one. All cores unless given.

    Raises:
        RuntimeError: a process failed; with its last words.
    """
    count = len(missing())
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bar = Progress(
        TextColumn(f"furnishing {what}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(file=sys.stderr), disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        job = bar.add_task("", total=total, completed=total - count)

        def show() -> None:
            bar.update(job, completed=total - len(missing()))

        if workers == 0 or count == 0:
            importlib.import_module(module).work(str(folder), setting, None, show)
        else:
            _make_beside(folder, module, setting, min(workers, count), show)
    if missing():
        raise RuntimeError(f"{folder}: processes that make {what} were ended from outside; what they made stays.")


def _make_beside(folder: Path, module: str, setting: Sequence[Any], workers: int, show: Callable[[], object]) -> None:
    code = f"import json, sys; from {module} import work; work(*json.loads(sys.argv[1]))"
    argument = json.dumps([str(folder), setting, os.getpid()])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    processes = []
    with tempfile.TemporaryFile() as said:
        try:
            for _ in range(workers):
                command = [sys.executable, "-c", code, argument]
                processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
            while None in (codes := [process.poll() for process in processes]) and not any(codes):
                show()
                time.sleep(0.2)
            show()
        finally:
            for process in processes:
                process.terminate()
                process.wait()
        if any(codes):
            said.seek(0)
            text = printable(said.read().decode(errors="replace").strip()[-2000:], 2000)
            raise RuntimeError(f"{folder}: a process that makes rooms ended with {next(filter(None, codes))}: {text}")


def orphaned(parent: int | None) -> bool:
    """Whether a process that works for another, of this number, has lost it."""
    return parent is not None and os.getppid() != parent


# --- annotations -----------------------------------------------------------------------------------------------------


def _annotate(folder: Path, setting: Setting) -> None:
    images: list[dict] = []
    entries: list[dict] = []
    for number in range(setting.count):
        image = _file(folder, "img_dir", setting, number)
        images.append(dict(id=number, file_name=image.name, width=setting.width, height=setting.height))
        paths = (_file(folder, kind, setting, number) for kind in ("ins_dir", "ann_dir"))
        instances, labels = (np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) for path in paths)
        for annotation in annotate(instances, labels):
            entries.append(dict(id=len(entries) + 1, image_id=number, **annotation))
    categories = [
        dict(id=label + 1, name=name, supercategory="furniture") for label, name in enumerate(furniture.CLASSES)
    ]
    info = dict(description="Furnished rooms of Attlas", maker=MAKER, **asdict(setting))
    found = dict(info=info, images=images, annotations=entries, categories=categories)
    with replacing(annotations(folder, setting.split)) as temporary:
        temporary.write_text(json.dumps(found, separators=(",", ":")))


def annotate(instances: np.ndarray, labels: np.ndarray) -> list[dict]:
    """The entries of COCO's annotations for maps of instances and labels (H, W) uint8, without ids."""
    from .rooms import extents

    entries = []
    for box, label, number in zip(*extents(instances, labels)):
        mask = instances == number
        left, top, right, bottom = map(int, box)
        entries.append(
            dict(
                category_id=int(label) + 1,
                bbox=[left, top, right - left, bottom - top],
                area=int(mask.sum()),
                iscrowd=0,
                segmentation=encoded(mask),
            )
        )
    return entries
