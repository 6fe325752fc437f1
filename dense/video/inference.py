"""How a detector of anomalies is asked (see `attlas.inference`): a video comes in, events come out.

A video is read frame by frame, whatever its length: memory is that of a clip.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from ...data import one_of
from ...files import replacing
from ...tasks import Task
from .errors import ABOUT
from .metrics import forms
from .videos import VIDEOS, Frames, Video, is_frames
from .windows import Events

OPTIONS = ("threshold", "quantile", "gap", "least")
SIGMA = 3.0  # frames, of what is written beside the scores


class AnomalyDetection(Task):
    """Video files, folders of frames, and arrays uint8 (T, H, W, 3), red, green, blue, or (T, H, W). A result has the
    number of `frames`, their `fps` (None where nothing tells), what a score is (`measure`), the `threshold`, and
    `scores` (T,), None for frames at either end, which no clip predicts. `events` is a list of dict(start, end, score,
    peak), in order: frames from 0, both ends included, the highest score and its frame; with fps also `seconds` (from,
    to). It is None where there is no threshold."""

    suffixes = VIDEOS
    top = 100

    def __init__(self) -> None:
        self.threshold: float | None = None
        self.gap, self.least = 5, 1

    def configure(self, model, threshold=None, quantile=None, gap=5, least=1, **options):
        """Set what an event is.

        Args:
            model: a detector.
            threshold: score above which a frame is anomalous; by default that below which a share of the normal frames
                of the training was (`VideoAnomalyDetector.threshold`).
            quantile: that share, 0.995 unless given.
            gap, least: as of `attlas.dense.video.windows.Events`.
            **options: none.
        """
        for name in options:
            one_of("Inferencer's option for a detector of anomalies", name, OPTIONS)
        if threshold is not None and quantile is not None:
            raise ValueError("threshold and quantile say the same in two ways: give one of them.")
        if threshold is None and (quantile is not None or model.normal_count):
            threshold = model.threshold() if quantile is None else model.threshold(quantile)
        Events(0.0 if threshold is None else threshold, gap, least)
        self.threshold, self.gap, self.least = None if threshold is None else float(threshold), gap, least

    def is_input(self, folder):
        return is_frames(folder)

    def read(self, path):
        return dict(video=Video(path), name=str(path))

    def take(self, source):
        return dict(video=Frames(source), name="the array")

    def prepare(self, transforms):
        def prepared(data):
            return data | dict(transforms=transforms) if "video" in data else transforms(data)

        return prepared

    def form(self, item):
        return object()  # a video shares no batch: what it comes to is of its clips alone

    def result(self, prediction, source, classes, top):
        scores, fps = prediction["scores"], prediction["fps"]
        listed = None
        if self.threshold is not None:
            events, found = Events(self.threshold, self.gap, self.least), []
            for frame, score in enumerate(scores):
                found += events.push(frame, float(score))
            found += events.end()
            kept = sorted(found, key=lambda event: -event.score)[:top]
            listed = [event._asdict() for event in sorted(kept)]
            for entry in listed if fps else ():
                entry["seconds"] = [round(entry["start"] / fps, 3), round((entry["end"] + 1) / fps, 3)]
        return dict(
            frames=len(scores),
            fps=fps,
            measure=prediction["measure"],
            threshold=self.threshold,
            events=listed,
            scores=[None if np.isnan(score) else float(score) for score in scores],
        )

    def said(self, result):
        text = f"{result['frames']} frames"
        if result["events"] is None:
            return f"{text}; no events without a threshold (--threshold)"
        said = []
        for event in result["events"]:
            seconds = event.get("seconds")
            when = f" ({seconds[0]:.2f} to {seconds[1]:.2f} s)" if seconds else ""
            said.append(f"frames {event['start']} to {event['end']}{when}, {event['score']:.2f} at {event['peak']}")
        count = len(said)
        events = f"{count or 'no'} event{'' if count == 1 else 's'}"
        about = f" above {result['threshold']:.2f} ({ABOUT[result['measure']]})"
        return f"{text}, {events}{about}" + (f": {'; '.join(said)}" if said else "")

    def draw(self, source, result):
        from .pictures import draw_anomalies  # here, because only pictures need it

        return draw_anomalies(source["video"], result, title=result["input"])

    def save(self, source: Any, result: dict, stem: Path) -> dict[str, Any]:
        """Scores go to a table, `stem`.csv: a line for each frame, with its score as it is (raw), and as it looks once
        the video is over (normalized), and without a look ahead (causal)."""
        scores = np.array([np.nan if score is None else score for score in result.pop("scores")])
        seen = ~np.isnan(scores)
        columns = dict(raw=scores) | {name: np.full(len(scores), np.nan) for name in ("normalized", "causal")}
        for name, values in forms(scores[seen], SIGMA).items():
            columns[name] = np.full(len(scores), np.nan)
            columns[name][seen] = values
        path = stem.with_name(f"{stem.name}.csv")
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["frame", *columns])
            for frame, row in enumerate(zip(*columns.values())):
                writer.writerow([frame, *("" if np.isnan(value) else f"{value:.6g}" for value in row)])
        return dict(table=path.name)
