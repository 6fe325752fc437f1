"""Walks through furnished rooms: short videos of a camera that moves, made once and kept as files.

The rule is that furniture stands still: nothing moves but the camera. The videos to train with obey it. In three of
four videos to test with, one object breaks it for a while: it jumps, grows and shrinks, or spins; the fourth is normal.
The files lie as ShanghaiTech's do:

    training/frames/07/031.png                 frame 31 of video 7
    testing/frames/04_jump/031.png
    testing/test_frame_mask/04_jump.npy        for each frame, whether it is anomalous: uint8 (T,)

Rooms to train with have the furniture of 'train', those to test with that of 'test'. A video is a function of its
number, the seed and the setting. Its last frame is its last file, and says that the video is there.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ... import furniture
from ...data import check_seed, positive
from ...files import cache_folder, replacing, sweep
from ..room_files import SPLITS, checked, make_files, orphaned

if TYPE_CHECKING:  # Open3D takes a second, and finished folders need none of it
    from ...rendering import Camera, Mesh

MAKER = 1  # to be raised whenever videos come out otherwise: folders made by another number are not used
KINDS = ("jump", "grow", "spin", "normal")  # of a video to test with, by its number
FOLDERS = {"train": "training", "test": "testing"}
LEAST = 24  # frames of a video
# what breaks the rule: it stands on the floor, and looks otherwise once it is turned
MOVERS = (
    *("armchair", "bed", "car", "chair", "coffee table", "desk", "kitchen cabinet", "large plant", "low cabinet"),
    *("person on the floor", "small cabinet", "sofa", "standing person", "table", "tall cabinet", "vanity"),
)
TRIES = 24  # ways that a camera may take, of which the first free one is taken
ROOMS = 8  # rooms for a video, of which the first is taken where an object of MOVERS is seen well
SEEN = 0.04  # share of the pixels that it covers then


@dataclass(frozen=True)
class Setting:
    """Which videos a folder holds: numbers 0 to `count` - 1 of a series, of so many frames, in pixels."""

    split: str
    count: int
    frames: int
    width: int
    height: int
    seed: int

    @property
    def name(self) -> str:
        key = hashlib.sha256(f"{MAKER}|{self}|".encode() + furniture.ASSET.read_bytes()).hexdigest()[:12]
        size = f"{self.count}x{self.frames}x{self.width}x{self.height}"
        return f"{self.split}-{size}-seed{self.seed}-{key}"

    def video(self, number: int) -> str:
        digits = max(2, len(str(self.count - 1)))
        return f"{number:0{digits}d}" + (f"_{KINDS[number % 4]}" if self.split == "test" else "")

    def frame(self, folder: Path, number: int, frame: int) -> Path:
        return folder / FOLDERS[self.split] / "frames" / self.video(number) / f"{frame:03d}.png"

    def truth(self, folder: Path, number: int) -> Path:
        return folder / FOLDERS[self.split] / "test_frame_mask" / f"{self.video(number)}.npy"


def walk_folder(
    split: str = "train",
    count: int = 24,
    frames: int = 48,
    size: Sequence[int] = (64, 48),
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int | None = None,
) -> Path:
    """The folder of some videos; what is missing there is made first, with a progress bar.

    Args:
        split: 'train' or 'test'.
        count: number of videos, each in a room of its own.
        frames: number of frames of each, at least `LEAST`.
        size: width and height in pixels.
        seed: chooses another series of videos (>= 0).
        cache, workers: as of `attlas.dense.room_files.room_folder`.

    Raises:
        ValueError: an argument is not what it may be.
        OSError: the folder cannot be made, or the disk is full.
        RuntimeError: a process that makes videos failed; with its last words.
    """
    width, height = checked(split, size)
    if positive("frames", frames) < LEAST:
        raise ValueError(f"frames is {frames}; it must be at least {LEAST}.")
    setting = Setting(split, positive("count", count), frames, width, height, check_seed(seed))
    folder = (Path(cache).expanduser() if cache else cache_folder()) / "room_walks" / setting.name
    if missing(folder, setting):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # before the work, not after it
            raise OSError(f"{folder} cannot be made ({error}); name another folder in $ATTLAS_CACHE.") from error
        what = f"{split} walks"
        make_files(folder, what, count, partial(missing, folder, setting), __name__, astuple(setting), workers)
    return folder


def missing(folder: Path, setting: Setting) -> list[int]:
    """The videos that are not there yet."""
    last = setting.frames - 1
    return [number for number in range(setting.count) if not setting.frame(folder, number, last).exists()]


def work(folder: str, setting: Sequence[Any], parent: int | None, after: Callable[[], object] = lambda: None) -> None:
    """Make the videos that are missing; see `attlas.dense.room_files.make_files`. Every process takes them in an order
    of its own, so that several share the work without a word."""
    place, made = Path(folder), Setting(*setting)
    random = np.random.default_rng(None if parent else 0)
    for number in map(int, random.permutation(missing(place, made))):
        if not made.frame(place, number, made.frames - 1).exists():
            write_walk(place, made, number)
        after()
        if orphaned(parent):
            sys.exit()


def write_walk(folder: Path, setting: Setting, number: int) -> None:
    """Write one video, and, of those to test with, its truth."""
    walk = Walk(setting.split, setting.seed, number, setting.frames)
    made = setting.frame(folder, number, 0).parent
    if made.exists():
        sweep(made)
    if setting.split == "test":
        with replacing(setting.truth(folder, number)) as temporary:
            np.save(temporary, walk.anomalous.astype(np.uint8), allow_pickle=False)
    for frame in range(setting.frames):
        image = walk.see(frame, setting.width, setting.height)
        with replacing(setting.frame(folder, number, frame)) as temporary:
            temporary.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())


class Walk:
    """One video: a room, the way of a camera through it, and, to test with, what breaks the rule.

    Args:
        split: 'train' or 'test'.
        seed: chooses another series of videos.
        number: number of the video.
        frames: number of frames.

    Attributes:
        anomalous: whether the rule is broken, for each frame: booleans (T,).
        kind: of KINDS.
        mover: number of the object that breaks it, in `room.things`; None where none does.
    """

    def __init__(self, split: str, seed: int, number: int, frames: int):
        from ..rooms import Room

        self.frames = frames
        self.kind = KINDS[number % 4] if split == "test" else "normal"
        self.anomalous = np.zeros(frames, bool)
        self.mover: int | None = None
        random = np.random.default_rng([seed, SPLITS.index(split), number, frames])
        if self.kind != "normal":
            length = int(random.integers(frames // 4, frames // 3 + 1))
            first = int(random.integers(frames // 5, frames - frames // 5 - length + 1))
            self.anomalous[first : first + length] = True
        for place in range(ROOMS):
            self.room: Room = Room(split, seed, ROOMS * number + place)
            self.cameras = self._way(random)
            if self.kind == "normal":
                break
            self.mover, share = self._mover(first, first + length)
            if share >= SEEN:
                break

    def _way(self, random: np.random.Generator) -> list["Camera"]:
        """A straight way from the room's camera, evenly walked, while the eye stays on one place of the room."""
        from ...rendering import camera_frame

        room, first = self.room, self.room.camera()
        # what it looks at is as far as the middle of the room, along its line of sight
        target = first.eye - first.frame[2] * np.hypot(*(room.size * 0.5 - first.eye)[[0, 2]])
        for attempt in range(TRIES):
            turn, reach = random.uniform(0, 2 * np.pi), random.uniform(0.5, 1.0) * (1 - attempt / TRIES)
            end = first.eye + reach * np.array([np.cos(turn), 0.0, np.sin(turn)])
            way = first.eye + np.linspace(0, 1, self.frames)[:, None] * (end - first.eye)
            if self._free(way):
                break
        else:  # where it cannot walk, it stands on its toes
            way = first.eye + np.linspace(0, 0.1, self.frames)[:, None] * (0, 1, 0)
        return [replace(first, frame=camera_frame(eye - target, "y"), eye=eye) for eye in way]

    def _free(self, way: np.ndarray) -> bool:
        from ..furnishing import Box

        if (way < 0.2).any() or (way[:, [0, 2]] > self.room.size[[0, 2]] - 0.2).any():
            return False
        boxes = [Box((eye[0], 0.0, eye[2]), (0.3, 1.9, 0.3), 0.0) for eye in way[:: max(1, len(way) // 12)]]
        return not any(box.overlaps(thing.box) for box in boxes for thing in self.room.things)

    def _mover(self, first: int, end: int) -> tuple[int, float]:
        """The object of MOVERS of which most is seen, and its share of the pixels: the least between two frames, and
        0.15 of what fills the view."""
        from ...rendering import Film

        shares = []
        for frame in np.linspace(first, end - 1, 4).astype(int):
            camera = self.cameras[frame]
            hits = self.room.scene.hit(camera.eye, Film(camera, 40, 30, 1).directions)
            counts = np.bincount(hits.mesh, minlength=len(self.room.meshes))
            shares.append(counts[-len(self.room.things) :] / 1200)
        seen = np.minimum(np.min(shares, axis=0), 0.15)
        seen *= [thing.model.kind in MOVERS for thing in self.room.things]
        return int(np.argmax(seen)), float(seen.max())

    def mesh(self, frame: int) -> "Mesh":
        """The object that breaks the rule, as it is in a frame."""
        assert self.mover is not None
        mesh = type(self.room.meshes[0])(self.room.meshes[-len(self.room.things) :][self.mover])
        box = self.room.things[self.mover].box
        since = frame - int(np.argmax(self.anomalous)) + 1
        if self.kind == "jump":
            mesh.translate((0.0, 0.4 * abs(np.sin(np.pi * since / 5)), 0.0))
        elif self.kind == "grow":
            mesh.scale(1.25 - 0.25 * np.cos(2 * np.pi * since / 6), center=box.place)
        else:
            angle = np.radians(40 * since)
            cos, sin = np.cos(angle), np.sin(angle)
            mesh.rotate(np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]), center=box.place)
        return mesh

    def see(self, frame: int, width: int, height: int) -> np.ndarray:
        """A frame, uint8 (H, W, 3), red, green, blue."""
        room = self.room
        if self.anomalous[frame] and self.mover is not None:
            room = room.changed(self.mover, self.mesh(frame))
        return room.see(self.cameras[frame], width, height).image
