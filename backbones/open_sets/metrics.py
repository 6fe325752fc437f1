"""What open-set scores are worth: OSCR curves, AUROC, FPR at 95 % and accuracy at a threshold that was chosen before.

Every function takes `scores` (N,), higher for surer known, and `labels` (N,), the class or a negative number for an
unknown; those that ask whether the class is right take `predictions` (N,) besides, which are always of known classes.
A sample is accepted at the threshold t if its score >= t. Samples of one score are accepted together, so no result
depends on the order of the samples. A score of NaN is refused.

- OSCR: CCR(t) = known samples that are accepted and of the right class / all known; FPR(t) = accepted unknown / all
  unknown. The curve ends, where all are accepted, at the closed-set accuracy. That it starts at (0, 0) is a choice of
  the reader: where the highest score is that of an unknown, no threshold among the scores gives FPR 0, and the area
  from there on is undefined (Dhamija et al., "Reducing network agnostophobia", NeurIPS 2018).
- Two ratios depend on who is called positive, and have it in their names: with known samples as the positive ones,
  FPR95 is the share of unknown that is accepted where 95 % of the known are; with unknown ones, the share of known that
  is rejected where 95 % of the unknown are. AUROC is the same number for both.
- OOSA, operational open-set accuracy: the share of all samples that are known, accepted and of the right class, or
  unknown and rejected, at a threshold that `best_threshold` chose on other samples.
"""

import math
from typing import NamedTuple

import numpy as np

POSITIVE = ("known", "unknown")


class Samples(NamedTuple):
    """Checked samples: `scores` float64, `known` and `right` bool, all (N,). `right`: known, and of the right class."""

    scores: np.ndarray
    known: np.ndarray
    right: np.ndarray


def samples(scores, labels, predictions=None) -> Samples:
    """Check what the metrics are given.

    Raises:
        ValueError: lengths differ, a score is NaN, a prediction is none of a known class, or all samples are of a kind.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    predictions = labels if predictions is None else np.asarray(predictions)
    for name, array in (("scores", scores), ("labels", labels), ("predictions", predictions)):
        if array.ndim != 1 or len(array) != len(scores):
            raise ValueError(f"{name} must be of shape (N,) = ({len(scores)},), got {array.shape}.")
    for name, array in (("labels", labels), ("predictions", predictions)):
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers, got {array.dtype}.")
    scores = scores.astype(np.float64)
    if (nan := np.isnan(scores)).any():
        raise ValueError(
            f"{nan.sum()} of {len(scores)} scores are NaN, the first is number {nan.argmax()}: such a sample is "
            "neither accepted nor rejected."
        )
    known = labels >= 0
    if known.all() or not known.any():
        raise ValueError(
            f"known and unknown samples are needed, got {known.sum()} known (label >= 0) and {(~known).sum()} unknown."
        )
    if predictions is not labels and (predictions < 0).any():
        raise ValueError(f"predictions must be known classes (from 0), got {predictions.min()}.")
    return Samples(scores, known, known & (predictions == labels))


class Curve(NamedTuple):
    """OSCR: `fpr` and `ccr` (T,) at each unique score, from the highest to the lowest, which are the `thresholds`."""

    fpr: np.ndarray
    ccr: np.ndarray
    thresholds: np.ndarray

    @property
    def closed_set_accuracy(self) -> float:
        """Where the curve ends: all are accepted."""
        return float(self.ccr[-1])


def _accepted(scores: np.ndarray, *kinds: np.ndarray) -> tuple[np.ndarray, ...]:
    """The unique scores from high to low, and of each kind (N,) bool how many have that score or a higher one."""
    values, place = np.unique(scores, return_inverse=True)
    counts = (np.bincount(place[kind], minlength=len(values))[::-1].cumsum() for kind in kinds)
    return values[::-1], *counts


def oscr(scores, labels, predictions) -> Curve:
    """The OSCR curve; its first point is that of the highest score."""
    found = samples(scores, labels, predictions)
    thresholds, right, unknown = _accepted(found.scores, found.right, ~found.known)
    return Curve(unknown / unknown[-1], right / found.known.sum(), thresholds)


def auoscr(curve: Curve, origin: bool) -> float:
    """Area under an OSCR curve, by trapezoids.

    Args:
        curve: curve of `oscr`.
        origin: whether the curve starts at (0, 0), as if there were a threshold above all scores. If not, the area is
            NaN, undefined, where the first point has an FPR above 0.
    """
    if origin:
        return _area(np.append(0.0, curve.fpr), np.append(0.0, curve.ccr))
    return _area(curve.fpr, curve.ccr) if curve.fpr[0] == 0 else math.nan


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)


def ccr_at_fpr(curve: Curve, fpr: float) -> float:
    """The highest CCR of a threshold whose FPR is at most `fpr` (in [0, 1]); nothing is interpolated. NaN, undefined,
    where no threshold among the scores has one."""
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must lie in [0, 1], got {fpr!r}.")
    within = curve.ccr[curve.fpr <= fpr]
    return float(within[-1]) if len(within) else math.nan


def auroc(scores, labels) -> float:
    """The share of pairs of a known and an unknown sample of which the known one has the higher score; a tie counts one
    half. Whether a known sample is of the right class does not matter. Who is positive does not matter either."""
    found = samples(scores, labels)
    unknown = np.sort(found.scores[~found.known])
    known = found.scores[found.known]
    below = np.searchsorted(unknown, known, "left") + np.searchsorted(unknown, known, "right")
    return float(below.sum() / (2 * len(known) * len(unknown)))


def _detection(scores, labels, positive: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each threshold, from the strictest: how many positive and how many negative samples are found positive."""
    if positive not in POSITIVE:
        raise ValueError(f"positive is {positive!r}; it may be {' or '.join(map(repr, POSITIVE))}.")
    found = samples(scores, labels)
    is_known = positive == "known"
    hits = found.known if is_known else ~found.known
    _, true, false = _accepted(found.scores if is_known else -found.scores, hits, ~hits)
    return true, false


def fpr_at_tpr(scores, labels, positive: str, tpr: float = 0.95) -> float:
    """False positive rate at the strictest threshold that finds a share `tpr` of the positive samples, which are the
    'known' (found: accepted) or the 'unknown' (found: below the threshold)."""
    hits, alarms = _detection(scores, labels, positive)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must lie in (0, 1], got {tpr!r}.")
    place = int(np.argmax(hits >= tpr * hits[-1] - 1e-9))  # of 20 samples 19 are 95 %
    return float(alarms[place] / alarms[-1])


def aupr(scores, labels, positive: str) -> float:
    """Area under precision over recall of the 'known' or the 'unknown' samples, as average precision: the mean of the
    precision over the positive samples, ties taken together."""
    hits, alarms = _detection(scores, labels, positive)
    return float((np.diff(hits, prepend=0) * hits / (hits + alarms)).sum() / hits[-1])


class Threshold(NamedTuple):
    """A threshold, and the `accuracy` that it had, with rejection, on the samples that it was chosen by."""

    value: float
    accuracy: float


def accuracy_at(threshold: float, scores, labels, predictions) -> float:
    """The share of samples that are known, accepted and of the right class, or unknown and rejected. It is OOSA if the
    threshold was chosen on other samples."""
    found = samples(scores, labels, predictions)
    _check_threshold(threshold)
    accepted = found.scores >= threshold
    return float(np.where(found.known, found.right & accepted, ~accepted).mean())


def rates_at(threshold: float, scores, labels) -> dict[str, float]:
    """The shares of known samples that are accepted (`known_accepted`) and of unknown ones that are rejected
    (`unknown_rejected`)."""
    found = samples(scores, labels)
    accepted = found.scores >= _check_threshold(threshold)
    return dict(
        known_accepted=float(accepted[found.known].mean()), unknown_rejected=float((~accepted)[~found.known].mean())
    )


def best_threshold(scores, labels, predictions) -> Threshold:
    """The threshold, among the scores, of the highest accuracy with rejection (`accuracy_at`); of several the lowest.
    For validation samples: known ones that are held out, and surrogates of the unknown."""
    found = samples(scores, labels, predictions)
    thresholds, right, unknown = _accepted(found.scores, found.right, ~found.known)
    accuracy = (right + unknown[-1] - unknown) / len(found.scores)
    place = len(accuracy) - 1 - int(np.argmax(accuracy[::-1]))
    return Threshold(_check_threshold(float(thresholds[place])), float(accuracy[place]))


def accepting_threshold(scores, share: float = 0.95) -> float:
    """The highest threshold, among the scores, that accepts a share of held-out known samples: where no unknown sample
    is at hand.

    Args:
        scores: scores (N,) of known samples that the score was not fitted to.
        share: share to accept, in (0, 1].
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise ValueError(f"scores must be (N,) numbers, none of them NaN, got {scores.shape}.")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share!r}.")
    kept = math.ceil(share * len(scores) - 1e-9)
    return _check_threshold(float(np.sort(scores)[len(scores) - kept]))


def _check_threshold(threshold: float) -> float:
    if not math.isfinite(threshold):
        raise ValueError(f"a threshold must be a finite number, got {threshold!r}.")
    return threshold
