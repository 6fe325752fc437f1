"""Reading videos, files and folders of frames, one frame after the other."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from ...files import near_files, printable
from ...images import SUFFIXES, read_image

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def natural(name: str) -> list:
    """A key that sorts names as people count: frame 2 before frame 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def frames_in(folder: str | Path) -> list[str]:
    """Names of the pictures that lie in a folder itself, as frames are counted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name[0] != "." and e.name.lower().endswith(SUFFIXES) and e.is_file()]
    return sorted(names, key=natural)


def is_frames(path: str | Path) -> bool:
    """Whether a path is a folder that holds frames, and no video file."""
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        videos = any(entry.name.lower().endswith(VIDEOS) and entry.name[0] != "." for entry in entries)
    return not videos and bool(frames_in(path))


class Video:
    """A video that is read when its frames are asked for: a file, or a folder of frames in the order of their numbers.

    Args:
        path: a file that OpenCV's FFmpeg decodes, or a folder with pictures.

    Attributes:
        name: its path.
        count: number of frames; of a file as its header says, which need not be what can be decoded.
        exact: whether `count` is certain.
        fps: frames a second; None where nothing tells.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: it is no video, or holds no frame.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = str(path)
        self.frames: list[str] = []
        self.fps: float | None = None
        if self.path.is_dir():
            self.frames = frames_in(self.path)
            if not self.frames:
                raise ValueError(f"{printable(path)} holds no frames: no picture ({' '.join(SUFFIXES)}).")
            self.count, self.exact = len(self.frames), True
        elif self.path.is_file():
            capture = self._open()
            self.count, self.exact = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), False
            fps = capture.get(cv2.CAP_PROP_FPS)
            self.fps = float(fps) if np.isfinite(fps) and 0 < fps <= 1000 else None
            capture.release()
        else:
            raise FileNotFoundError(f"{printable(path)} does not exist. {near_files(self.path)}")

    def _open(self) -> cv2.VideoCapture:
        # FFmpeg alone: other backends would take the name for a pattern of files
        capture = cv2.VideoCapture(os.path.abspath(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise ValueError(f"{printable(self.path)} is no video that FFmpeg can decode.")
        return capture

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, uint8 (H, W, 3), red, green, blue, decoded one by one.

        Raises:
            ValueError: a frame cannot be read, is of another size than the first, or there is none; names the file.
        """
        yield from self._alike(map(self._picture, self.frames) if self.frames else self._decoded(0, None, 1))

    def clip(self, start: int, length: int, step: int) -> list[np.ndarray]:
        """The frames start, start + step, ...: `length` of them. Of a file FFmpeg is asked to seek, which may miss the
        start by a few frames where the file has no index; those that follow are in order in any case.

        Raises:
            ValueError: as of iteration; or the video ends before the last.
        """
        if self.frames:
            names = self.frames[start : start + (length - 1) * step + 1 : step]
            found = list(self._alike(map(self._picture, names)))
        else:
            found = list(self._alike(self._decoded(start, length, step)))
        if len(found) < length:
            raise ValueError(f"{printable(self.name)} ends before frame {start + (length - 1) * step}.")
        return found

    def picked(self, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """Some frames by number. All up to the last of them are decoded, and only these kept."""
        wanted, found = set(numbers), {}
        if self.frames:
            return {number: self._picture(self.frames[number]) for number in wanted}
        for number, frame in enumerate(self):
            if number in wanted:
                found[number] = frame
            if len(found) == len(wanted):
                break
        return found

    def _picture(self, name: str) -> np.ndarray:
        return read_image(self.path / name)

    def _decoded(self, start: int, length: int | None, step: int) -> Iterator[np.ndarray]:
        capture = self._open()
        try:
            if start and not capture.set(cv2.CAP_PROP_POS_FRAMES, start):
                raise ValueError(f"{printable(self.name)}: FFmpeg cannot seek to frame {start}.")
            number = 0
            while (length is None or number <= (length - 1) * step) and capture.grab():
                if number % step == 0:
                    whole, frame = capture.retrieve()
                    if not whole:
                        raise ValueError(f"{printable(self.name)}: frame {start + number} cannot be decoded.")
                    yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB if frame.ndim == 3 else cv2.COLOR_GRAY2RGB)
                number += 1
        finally:
            capture.release()

    def _alike(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        size = None
        for number, frame in enumerate(frames):
            size = size or frame.shape
            if frame.shape != size:
                sides = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (size, frame.shape))
                where = printable(self.frames[number]) if self.frames else f"frame {number}"
                raise ValueError(f"{printable(self.name)}: its frames are of several sizes, {sides} ({where}).")
            yield frame
        if size is None:
            raise ValueError(f"{printable(self.name)} holds no frame that can be decoded.")


class Frames:
    """A video that is given as an array, with what of a `Video` the model reads.

    Args:
        frames: uint8 (T, H, W, 3), red, green, blue, or grey (T, H, W).
        name: its name.

    Raises:
        ValueError: the array is none of these.
    """

    fps = None
    exact = True

    def __init__(self, frames: np.ndarray, name: str = "the array"):
        found = np.asarray(frames)
        if found.dtype != np.uint8 or found.ndim not in (3, 4) or found.shape[3:] not in ((), (3,)) or not found.size:
            raise ValueError(
                f"a video must be uint8 (T, H, W, 3), red, green and blue, or (T, H, W), not {found.dtype} "
                f"{found.shape}"
            )
        self.array, self.name, self.count = found, name, len(found)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._colored(frame) for frame in self.array)

    def picked(self, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """Some frames by number."""
        return {number: self._colored(self.array[number]) for number in numbers}

    @staticmethod
    def _colored(frame: np.ndarray) -> np.ndarray:
        return frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)
