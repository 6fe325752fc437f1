"""How well scores tell anomalous frames: the area under the ROC curve, with every choice printed.

One and the same scores read 0.67, 0.92 or 0.99, as they are normalized and as videos are put together. So there is one
table, always: of the scores as they are, normalized, and normalized without a look ahead, and for each the AUC of all
frames together (micro) and the mean of the AUCs of the videos (macro).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ...files import check_out, printable, replacing
from ...registry import METRICS


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve: how probably an anomalous frame has a higher score than a normal one; equal scores
    count half. NaN where all frames are of one class.

    Args:
        scores: finite numbers (N,).
        truth: booleans (N,).

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth, bool)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise ValueError(f"scores are {scores.shape}, and truth {truth.shape}; both must be (N,).")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinite numbers.")
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # the mean rank of those that are equal
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


# --- normalization ---------------------------------------------------------------------------------------------------


def _gaussian(sigma: float) -> np.ndarray:
    reach = int(np.ceil(3 * sigma))
    return np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2) if sigma else np.ones(1)


def smoothed(scores: np.ndarray, sigma: float, causal: bool = False) -> np.ndarray:
    """Scores (N,) averaged over time with a Gaussian window of `sigma` frames, cut at 3 sigma; at the ends with what
    there is of it. Causal: with its half of the past."""
    taps = _gaussian(sigma)
    middle = len(taps) // 2
    if causal:
        taps = np.concatenate([np.zeros(middle), taps[middle:]])  # convolution turns it: later taps see the past
    total = np.convolve(scores, taps)[middle : middle + len(scores)]
    weight = np.convolve(np.ones(len(scores)), taps)[middle : middle + len(scores)]
    return total / weight


def normalized(scores: np.ndarray, sigma: float = 3.0) -> np.ndarray:
    """Scores (N,) of a video as most papers have them: minus the least, over the range of the whole video, which has to
    be over for it, then smoothed, with a look ahead. Scores that are all the same become 0."""
    low, high = scores.min(), scores.max()
    return smoothed((scores - low) / (high - low) if high > low else np.zeros(len(scores)), sigma)


def causal(scores: np.ndarray, sigma: float = 3.0) -> np.ndarray:
    """As `normalized`, of what was seen until each frame: the range so far, and the half of the window in the past. The
    first score, and all that equal it before another comes, become 0."""
    low, high = np.minimum.accumulate(scores), np.maximum.accumulate(scores)
    spread = high - low
    found = np.divide(scores - low, spread, out=np.zeros(len(scores)), where=spread > 0)
    return smoothed(found, sigma, causal=True)


ROWS: Mapping[str, str] = dict(
    raw="scores as they are",
    normalized="over the range of each video, smoothed: needs the whole video",
    causal="over the range so far, smoothed over the past",
)


def forms(scores: np.ndarray, sigma: float) -> dict[str, np.ndarray]:
    """The scores (N,) of a video by the names of ROWS."""
    return dict(raw=scores, normalized=normalized(scores, sigma), causal=causal(scores, sigma))


def areas(videos: Sequence[tuple[np.ndarray, np.ndarray]], sigma: float = 3.0) -> dict[str, tuple[float, float]]:
    """(micro, macro) AUC by the names of ROWS.

    Args:
        videos: scores (T,) and truth (T,) of each. Frames whose score is NaN, as no clip predicts them, are left out,
            before anything is normalized.
        sigma: of the smoothing, in frames.

    Returns:
        micro: of all frames together, also of videos of one class. macro: mean over the videos with both classes. NaN
        where there are no frames of both classes.
    """
    seen = [(scores[~np.isnan(scores)], truth[~np.isnan(scores)]) for scores, truth in videos]
    formed = [forms(scores, sigma) for scores, _ in seen]
    found = {}
    for name in ROWS:
        micro = auc(np.concatenate([form[name] for form in formed]), np.concatenate([truth for _, truth in seen]))
        each = [auc(form[name], truth) for form, (_, truth) in zip(formed, seen) if 0 < truth.sum() < len(truth)]
        found[name] = micro, float(np.mean(each)) if each else float("nan")
    return found


# --- of whole data sets ----------------------------------------------------------------------------------------------


@METRICS.register_module()
class VideoAUC(BaseMetric):
    """AUC of frames, in %: `raw_micro`, `raw_macro`, and so of `normalized` and `causal`; see `areas`. The log has the
    table, the AUC of each video, and the set that it is of: videos, frames, what was left out and why.

    Args:
        sigma: of the smoothing of `normalized` and `causal`, in frames; 0 for none. The authors' is not published.
        by_video: whether the raw AUC of each video is logged.
        out_file: .npz to write: scores and truth of each video, under the numbers that `names` gives them.
        overwrite: whether an existing file may be replaced.
        prefix: before the names of the figures.
    """

    default_prefix = ""
    out_suffix = ".npz"

    def __init__(
        self,
        sigma: float = 3.0,
        by_video: bool = True,
        out_file: str | None = None,
        overwrite: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        if not np.isfinite(sigma) or sigma < 0:
            raise ValueError(f"VideoAUC.sigma is {sigma!r}; it must be a number of at least 0.")
        self.sigma, self.by_video = float(sigma), by_video
        self.out_file = None if out_file is None else check_out(out_file, (self.out_suffix,), overwrite)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            if sample.get("truth") is None:
                raise ValueError(f"{printable(sample['name'])} came without the truth about its frames.")
            truth = np.asarray(sample["truth"], bool)
            if len(truth) != len(sample["scores"]):
                raise ValueError(
                    f"{printable(sample['name'])} has {len(sample['scores'])} scores, and {len(truth)} frames of truth."
                )
            self.results.append((str(sample["name"]), sample["scores"], truth, sample.get("measure", "")))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        if not results:
            raise ValueError("VideoAUC: there is no video to measure.")
        if self.out_file is not None:
            self._write(self.out_file, results)
        videos = [(scores, truth) for _, scores, truth, _ in results]
        found = areas(videos, self.sigma)
        print_log(self._told(results, found), logger="current")
        figures = {}
        for name, (micro, macro) in found.items():
            figures[f"{name}_micro"], figures[f"{name}_macro"] = round(100 * micro, 3), round(100 * macro, 3)
        return figures

    @staticmethod
    def _write(path: Path, results: list[tuple]) -> None:
        arrays: dict[str, np.ndarray] = {}
        for number, (_, scores, truth, _) in enumerate(results):
            arrays |= {f"scores_{number}": scores, f"truth_{number}": truth}
        with replacing(path) as temporary:
            np.savez_compressed(temporary, names=np.array([name for name, *_ in results]), **arrays)  # type: ignore[arg-type]

    def _told(self, results: list[tuple], found: Mapping[str, tuple[float, float]]) -> str:
        left_out = sum(int(np.isnan(scores).sum()) for _, scores, _, _ in results)
        frames = sum(len(scores) for _, scores, _, _ in results)
        each = [(name, scores[~np.isnan(scores)], truth[~np.isnan(scores)]) for name, scores, truth, _ in results]
        kinds = [(bool(truth.any()), bool((~truth).any())) for _, _, truth in each]
        both = sum(kind == (True, True) for kind in kinds)
        normal, anomalous = kinds.count((False, True)), kinds.count((True, False))
        positives = sum(int(truth.sum()) for _, _, truth in each)
        lines = [
            f"AUC of frames in %, of all {len(results)} videos of the test data; score: {results[0][3] or 'given'}",
            f"{'':10}  {'micro':>7}  {'macro':>7}",
        ]
        for name, (micro, macro) in found.items():
            lines.append(f"{name:10}  {100 * micro:7.2f}  {100 * macro:7.2f}  {ROWS[name]}")
        lines.append(
            f"micro: {frames - left_out} frames together, {positives} of them anomalous; {left_out} of {frames} at the "
            "ends of videos, which no clip predicts, are left out."
        )
        lines.append(
            f"macro: mean over the {both} videos with both classes; left out are {normal} with normal frames only and "
            f"{anomalous} with anomalous ones only. Smoothing: sigma = {self.sigma:g} frames."
        )
        if self.by_video:
            lines.append("raw AUC of each video:")
            for name, scores, truth in each:
                value = auc(scores, truth)
                shown = "one class" if np.isnan(value) else f"{100 * value:.2f}"
                lines.append(f"  {printable(Path(name).name)}: {shown}")
        return "\n".join(lines)


@METRICS.register_module()
class ClipLoss(BaseMetric):
    """The mean loss over clips, `loss`, as of training, in inference mode: what schedules may watch."""

    default_prefix = ""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.results += [float(sample["loss"]) for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        if not results:
            raise ValueError("ClipLoss: there is no clip to measure.")
        return dict(loss=float(np.mean(results)))
