"""Pictures of the scores of a video, with frames of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...files import printable
from .errors import ABOUT
from .videos import Frames, Video

FRAMES = 8  # that are shown
CURVE, ANOMALOUS, TRUTH = "#0072B2", "#D55E00", "#F0E442"  # told apart without red and green
SMALL = 9  # points


def shown_frames(scores: np.ndarray, count: int = FRAMES) -> list[int]:
    """The frames to show: of each of `count` equal parts of the video the one with the highest score, or the middle one
    where no frame of it has a score."""
    edges = np.linspace(0, len(scores), min(count, len(scores)) + 1).astype(int)
    parts = [scores[start:end] for start, end in zip(edges, edges[1:])]
    places = [len(part) // 2 if np.isnan(part).all() else int(np.nanargmax(part)) for part in parts]
    return [int(start) + place for start, place in zip(edges, places)]


def draw_anomalies(
    video: Video | Frames, result: Mapping[str, Any], truth: np.ndarray | None = None, title: str = ""
) -> Figure:
    """The scores of a video over its frames, with the threshold, the events, the truth where there is one, and above
    them the worst predicted frame of each part of the video.

    Args:
        video: the video, from which the frames are read.
        result: what `AnomalyDetection` says of it.
        truth: booleans (T,).
        title: line above.

    Raises:
        ValueError: the truth is of another number of frames.
    """
    scores = np.array([np.nan if score is None else score for score in result["scores"]], float)
    if truth is not None and len(truth) != len(scores):
        raise ValueError(f"truth is of {len(truth)} frames, and the scores of {len(scores)}.")
    numbers = shown_frames(scores)
    frames = video.picked(numbers)
    height, width = frames[numbers[0]].shape[:2]
    wide = 11.0
    tall = wide / len(numbers) * height / width
    figure = Figure((wide, tall + 3.3), layout="constrained", dpi=110)
    above, below = figure.subfigures(2, 1, height_ratios=[tall + 0.35, 2.95])  # type: ignore[misc]
    threshold, events = result["threshold"], result["events"] or ()
    for axes, number in zip(np.atleast_1d(above.subplots(1, len(numbers))), numbers):
        over = threshold is not None and scores[number] > threshold
        axes.imshow(frames[number], interpolation="nearest")
        axes.set(xticks=(), yticks=())
        axes.set_title(f"{number}", fontsize=SMALL, color=ANOMALOUS if over else "0.2", pad=3)
        axes.spines[:].set(color=ANOMALOUS if over else "0.6", linewidth=2.5 if over else 0.6)
    axes = below.subplots()
    if truth is not None and truth.any():
        edges = np.flatnonzero(np.diff(np.concatenate([[0], truth.astype(int), [0]])))
        for place, (start, end) in enumerate(edges.reshape(-1, 2)):
            label = "anomalous in truth" if place == 0 else None
            axes.axvspan(start - 0.5, end - 0.5, color=TRUTH, alpha=0.55, linewidth=0, label=label)
    axes.plot(scores, color=CURVE, linewidth=1.6, label="score")
    axes.plot(numbers, scores[numbers], "o", color=CURVE, markersize=4)
    if threshold is not None:
        axes.axhline(threshold, color="0.3", linewidth=1, linestyle="--", label="threshold")
    for place, event in enumerate(events):
        label = "event" if place == 0 else None
        axes.plot([event["start"] - 0.5, event["end"] + 0.5], [1, 1], color=ANOMALOUS, linewidth=6,
                  transform=axes.get_xaxis_transform(), solid_capstyle="butt", clip_on=False, label=label)  # fmt: skip
    axes.set_xlim(-0.5, len(scores) - 0.5)
    axes.set_xlabel("frame", fontsize=SMALL)
    axes.set_ylabel(ABOUT[result["measure"]].replace(", in dB", " (dB)"), fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(printable(title, 100), fontsize=SMALL, color="0.35", parse_math=False)
    return figure
