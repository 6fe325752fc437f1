"""Which frames of a video a clip holds and predicts, and what the predictions of clips make of the frames.

A clip that starts at frame s has the frames s, s + step, ..., `length` of them. Those in its middle, without `context`
at each end, are predicted. This is the one map from clips to frames: `Windows.targets`. Whatever is said of a video has
one entry for each of its frames; what no clip predicts, at either end, is NaN.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...data import positive


class Windows(NamedTuple):
    """How clips lie in a video.

    Args:
        length: number of frames of a clip.
        step: distance of its frames.
        context: number of frames at each of its ends that are not predicted.
        overlap: whether every start is taken: a frame is predicted once at each place in the middle of a clip. Else it
            is predicted once, by the fewest clips, and at most step (middle - 1) frames less at the end of a video.
    """

    length: int
    step: int
    context: int
    overlap: bool = True

    def check(self) -> "Windows":
        """Itself; a ValueError if no clip is like that."""
        for name in ("length", "step", "context"):
            positive(name, getattr(self, name))
        if self.length <= 2 * self.context:
            raise ValueError(f"length is {self.length}; with context={self.context} it must be over {2 * self.context}")
        return self

    @property
    def middle(self) -> int:
        """Number of frames that a clip predicts."""
        return self.length - 2 * self.context

    @property
    def span(self) -> int:
        """Number of frames from the first of a clip to its last."""
        return (self.length - 1) * self.step + 1

    @property
    def delay(self) -> int:
        """Number of frames that are to come before all is known of one."""
        return self.span - 1 - self.context * self.step

    def starts_at(self, start: int) -> bool:
        """Whether a clip starts at a frame."""
        return self.overlap or start % (self.step * self.middle) < self.step

    def starts(self, frames: int) -> list[int]:
        """Where the clips of a video of so many frames start."""
        return [start for start in range(frames - self.span + 1) if self.starts_at(start)]

    def targets(self, start: int) -> list[int]:
        """The frames that the clip at a start predicts."""
        return [start + (self.context + place) * self.step for place in range(self.middle)]


class Gathered:
    """The score of each frame as the mean of those that clips give it. Clips come by their starts; memory is that of a
    clip, however long the video is.

    Args:
        windows: how clips lie in the video.
    """

    def __init__(self, windows: Windows):
        self.windows = windows
        self.first = 0  # frame, of which not all is known
        self.sums: dict[int, tuple[float, int]] = {}

    def add(self, start: int, scores: np.ndarray) -> None:
        """The scores (middle,) of the frames that the clip at a start predicts."""
        for frame, score in zip(self.windows.targets(start), scores, strict=True):
            total, count = self.sums.get(frame, (0.0, 0))
            self.sums[frame] = total + float(score), count + 1

    def until(self, end: int) -> Iterator[tuple[int, float]]:
        """(frame, score) of the frames before `end` that were not given yet; NaN where no clip predicts one."""
        for frame in range(self.first, end):
            total, count = self.sums.pop(frame, (0.0, 0))
            yield frame, total / count if count else float("nan")
        self.first = max(self.first, end)


class Event(NamedTuple):
    """Frames from `start` to `end`, both of it, the highest score, and the frame that has it."""

    start: int
    end: int
    score: float
    peak: int


class Events:
    """Events of a stream of scores: runs of frames above a threshold.

    Args:
        threshold: score above which a frame is anomalous.
        gap: most frames between two runs that are one event.
        least: fewest frames from the start of an event to its end; shorter ones are left out.
    """

    def __init__(self, threshold: float, gap: int = 5, least: int = 1):
        if not np.isfinite(threshold):
            raise ValueError(f"threshold is {threshold!r}; it must be a finite number.")
        if isinstance(gap, bool) or not isinstance(gap, int) or gap < 0:
            raise ValueError(f"gap is {gap!r}; it must be an integer of at least 0.")
        self.threshold, self.gap, self.least = float(threshold), gap, positive("least", least)
        self.open: Event | None = None

    def push(self, frame: int, score: float) -> Iterator[Event]:
        """The event, if one has ended before this frame. Frames come in order; NaN is no score above anything."""
        if self.open is not None and frame - self.open.end > self.gap + 1:
            yield from self.end()
        if score > self.threshold:
            if self.open is None:
                self.open = Event(frame, frame, score, frame)
            else:
                best = max((score, -frame), (self.open.score, -self.open.peak))
                self.open = Event(self.open.start, frame, best[0], -best[1])

    def end(self) -> Iterator[Event]:
        """The event that is open, as the video ends."""
        found, self.open = self.open, None
        if found is not None and found.end - found.start + 1 >= self.least:
            yield found
