"""What a confusion matrix and the confidences of predictions say of a classifier, by the usual definitions."""

from typing import NamedTuple

import numpy as np


def agreement(confusion: np.ndarray) -> dict[str, float]:
    """How far predictions agree with the truth beyond chance, and the means over classes.

    Args:
        confusion: (C, C) counts; rows: truth, columns: prediction.

    Returns:
        `kappa`: Cohen's, and `mcc`: Matthews' correlation coefficient (Gorodkin's, of several classes), both in [-1, 1]
        and 0 where chance alone agrees (also where one class is all truth or all predictions). `precision`, `recall`,
        `f1`: in percent, means over the classes that are in the truth or in the predictions; a ratio without
        a denominator counts as 0.
    """
    counts = confusion.astype(np.float64)
    total, right = counts.sum(), np.diag(counts)
    truth, predicted = counts.sum(1), counts.sum(0)
    by_chance = truth @ predicted
    excess = right.sum() * total - by_chance
    spread = np.sqrt((total**2 - truth @ truth) * (total**2 - predicted @ predicted))
    seen = (truth + predicted) > 0
    precision, recall = _ratio(right, predicted)[seen], _ratio(right, truth)[seen]
    f1 = _ratio(2 * right, truth + predicted)[seen]
    return dict(
        kappa=float(_ratio(excess, total**2 - by_chance)),
        mcc=float(_ratio(excess, spread)),
        precision=float(100 * precision.mean()),
        recall=float(100 * recall.mean()),
        f1=float(100 * f1.mean()),
    )


def confidence_gap(confidence: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """How much surer a classifier is where it is right.

    Args:
        confidence: (M,) probability of the predicted class.
        right: (M,) bool, whether it is the true one.

    Returns:
        `confidence_right`, `confidence_wrong`: mean confidences in percent, and their difference `confidence_gap` in
        points; without those that have no prediction to be the mean of.
    """
    found = {}
    for name, chosen in (("right", right), ("wrong", ~right)):
        if chosen.any():
            found[f"confidence_{name}"] = float(100 * confidence[chosen].mean())
    if len(found) == 2:
        found["confidence_gap"] = found["confidence_right"] - found["confidence_wrong"]
    return found


class Confused(NamedTuple):
    """A pair of classes: in how many images `truth` was taken for `prediction`."""

    truth: str
    prediction: str
    images: int


def confused_pairs(confusion: np.ndarray, classes, most: int = 5) -> list[Confused]:
    """The pairs of classes that are confused most often, at most so many; of equal counts the first in the matrix."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = [divmod(int(place), len(confusion)) for place in order]
    return [Confused(classes[i], classes[j], int(wrong[i, j])) for i, j in places if wrong[i, j]]


def _ratio(above, below) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(np.asarray(below, np.float64)), where=np.asarray(below) != 0)
