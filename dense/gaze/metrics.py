"""How near predicted scanpaths are to those of people, each figure with its unit.

A path is a sequence of objects, numbered from 0, in the order in which they were looked at. Objects are the units of
strings: nothing is clustered. Where fixations are points, `attlas.dense.gaze.datasets` makes objects of them.

Sources: OAT (arXiv 2407.13335) for the sequence score, the behavior and its delta; Needleman and Wunsch (1970);
Levenshtein (1966); MultiMatch (Jarodzka et al., ETRA 2010; Dewhurst et al., Behavior Research Methods 2012).
"""

import heapq
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ...registry import METRICS

Path = Sequence[int]


# --- strings of objects ----------------------------------------------------------------------------------------------


def sequence_score(path: Path, truth: Path, gap: float = 0.0) -> float:
    """SS, a share from 0 to 1: the best alignment of two paths in order (Needleman and Wunsch), of match 1 and mismatch
    0, divided by the longer length. Without a price of gaps that is their longest common subsequence.

    Args:
        path, truth: objects.
        gap: what a gap adds, 0 or less; below 0 the score may be below 0 too.

    Raises:
        ValueError: both are empty, or gap is above 0.
    """
    if not len(path) and not len(truth):
        raise ValueError("both paths are empty: there is nothing to compare.")
    if not gap <= 0:
        raise ValueError(f"gap is {gap!r}; it must be 0 or less.")
    before = [gap * number for number in range(len(truth) + 1)]
    for count, place in enumerate(path, 1):
        row = [gap * count]
        for number, other in enumerate(truth):
            row.append(max(before[number] + (place == other), before[number + 1] + gap, row[-1] + gap))
        before = row
    return before[-1] / max(len(path), len(truth))


def edit_distance(path: Path, truth: Path) -> int:
    """FED, in fixations: insertions, deletions and replacements of an object that make one path of the other."""
    before = list(range(len(truth) + 1))
    for count, place in enumerate(path, 1):
        row = [count]
        for number, other in enumerate(truth):
            row.append(min(before[number] + (place != other), before[number + 1] + 1, row[-1] + 1))
        before = row
    return before[-1]


# --- behavior --------------------------------------------------------------------------------------------------------


class Behavior(NamedTuple):
    """What a person does on a path, or on average over several. Fractions are of the length, and sum to 1."""

    hit: float  # whether the last object is the target, 0 or 1
    length: float  # fixations
    search: float  # fraction that is the first look at an object
    refixation: float  # fraction that stays on the object of the fixation before
    revisit: float  # fraction that comes back to an object


def behavior(path: Path, target: int) -> Behavior:
    """The behavior of a path. Of consecutive looks at one object, the first is a search, if the object is new, or a
    revisit, and the others are refixations. An empty path has zeros."""
    if not len(path):
        return Behavior(0.0, 0.0, 0.0, 0.0, 0.0)
    seen: set[int] = set()
    search = refixation = revisit = 0
    previous = None
    for place in path:
        if place == previous:
            refixation += 1
        elif place in seen:
            revisit += 1
        else:
            search += 1
        seen.add(place)
        previous = place
    n = len(path)
    return Behavior(float(path[-1] == target), float(n), search / n, refixation / n, revisit / n)


def mean_behavior(paths: Sequence[Path], targets: Sequence[int]) -> Behavior:
    """The mean of the behavior of several paths.

    Raises:
        ValueError: there is no path, or not a target for each.
    """
    if not paths or len(paths) != len(targets):
        raise ValueError(f"{len(paths)} paths and {len(targets)} targets; there must be a target for each, and one.")
    return Behavior(*np.mean([behavior(path, target) for path, target in zip(paths, targets)], 0).tolist())


def behavior_delta(predicted: Behavior, truth: Behavior) -> float:
    """Mean over the five numbers of |predicted - truth| / truth, at least 0. A number that is 0 in truth counts as 0
    where it is predicted so, and else the delta is infinite."""
    parts = [abs(p - t) / t if t else (0.0 if p == t else float("inf")) for p, t in zip(predicted, truth)]
    return float(np.mean(parts))


# --- distributions ---------------------------------------------------------------------------------------------------


def similarity(chances: np.ndarray, truth: np.ndarray) -> float:
    """SIM, a share from 0 to 1: the intersection of two histograms over objects, the mean over steps. Where the truth
    is one object at each step, that is the mean chance of that object.

    Args:
        chances, truth: (steps, objects); each row sums to 1.

    Raises:
        ValueError: other shapes, NaN, or rows that are no distribution.
    """
    chances, truth = np.asarray(chances, np.float64), np.asarray(truth, np.float64)
    if chances.shape != truth.shape or chances.ndim != 2 or 0 in chances.shape:
        raise ValueError(f"histograms are {chances.shape} and {truth.shape}; both must be (steps, objects).")
    for name, rows in (("chances", chances), ("truth", truth)):
        if not ((rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-4)):
            raise ValueError(f"{name}: each row must be a distribution, numbers of at least 0 that sum to 1.")
    return float(np.minimum(chances, truth).sum(1).mean())


# --- MultiMatch ------------------------------------------------------------------------------------------------------


class MultiMatch(NamedTuple):
    """Similarities of two paths in space, each a share from 0 to 1."""

    vector: float  # of saccades as vectors, against twice the diagonal
    direction: float  # of their angles, against half a turn
    length: float  # of their lengths, against the diagonal
    position: float  # of their starts, against the diagonal
    duration: float | None  # of fixations, against the longer of two; None where none is given


def multimatch(
    path: np.ndarray,
    truth: np.ndarray,
    size: Sequence[float],
    durations: tuple[Sequence[float], Sequence[float]] | None = None,
) -> MultiMatch:
    """MultiMatch of two paths, which are not simplified before: fixations on objects are few, and none of them jitter.

    Saccades are aligned by the way through the matrix of the lengths of their vectors' differences, from both first to
    both last, by steps of one saccade of either path or of both, whose sum is the least. The medians along it are
    divided by the largest that they can be.

    Args:
        path, truth: (L, 2), at least two fixations each, horizontal and vertical, in any unit that is that of `size`.
        size: width and height of what was looked at.
        durations: of the fixations of both paths, in one unit.

    Raises:
        ValueError: fewer than two fixations, NaN, points outside, or durations that do not fit.
    """
    width, height = size
    paths = [np.asarray(points, np.float64) for points in (path, truth)]
    for name, points in zip(("path", "truth"), paths):
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2:
            raise ValueError(f"{name} is {points.shape}; MultiMatch needs two fixations at least, (L, 2).")
        if not ((points >= 0) & (points <= [width, height])).all():  # false of NaN
            raise ValueError(f"{name} leaves the {width:g} x {height:g} that were looked at, or holds NaN.")
    first, second = (np.diff(points, axis=0) for points in paths)
    apart = np.linalg.norm(first[:, None] - second[None], axis=-1)
    steps = _alignment(apart)
    i, j = steps.T
    turned = np.abs(np.arctan2(first[i, 1], first[i, 0]) - np.arctan2(second[j, 1], second[j, 0]))
    lengths = np.abs(np.linalg.norm(first[i], axis=1) - np.linalg.norm(second[j], axis=1))
    starts = np.linalg.norm(paths[0][i] - paths[1][j], axis=1)
    diagonal = float(np.hypot(width, height))
    told = None
    if durations is not None:
        times = [np.asarray(each, np.float64) for each in durations]
        for each, points in zip(times, paths):
            if each.shape != (len(points),) or not (np.isfinite(each) & (each > 0)).all():
                raise ValueError("durations must be positive, one for each fixation.")
        told = 1 - float(np.median(np.abs(times[0][i] - times[1][j]) / np.maximum(times[0][i], times[1][j])))
    return MultiMatch(
        1 - float(np.median(apart[i, j])) / (2 * diagonal),
        1 - float(np.median(np.minimum(turned, 2 * np.pi - turned))) / np.pi,
        1 - float(np.median(lengths)) / diagonal,
        1 - float(np.median(starts)) / diagonal,
        told,
    )


def _alignment(cost: np.ndarray) -> np.ndarray:
    """The pairs (K, 2) on the cheapest way from the first to the last corner of a matrix; what is entered costs."""
    rows, columns = cost.shape
    best = {(0, 0): 0.0}
    before: dict[tuple[int, int], tuple[int, int]] = {}
    waiting = [(0.0, (0, 0))]
    last = (rows - 1, columns - 1)
    while waiting:
        spent, (i, j) = heapq.heappop(waiting)
        if (i, j) == last:
            break
        for place in ((i, j + 1), (i + 1, j), (i + 1, j + 1)):
            if place[0] < rows and place[1] < columns:
                total = spent + float(cost[place])
                if total < best.get(place, float("inf")):
                    best[place], before[place] = total, (i, j)
                    heapq.heappush(waiting, (total, place))
    way = [last]
    while way[-1] != (0, 0):
        way.append(before[way[-1]])
    return np.array(way[::-1])


# --- people against each other ---------------------------------------------------------------------------------------


def human_agreement(paths: Mapping[Hashable, Mapping[Hashable, Path]]) -> dict[str, float]:
    """What people reach against each other, which a prediction can be held to: SS and FED, the mean over scenes of the
    mean over pairs of two people. Nobody is compared with himself.

    Args:
        paths: of each scene, those of each person.

    Returns:
        dict(SS, FED, pairs, scenes); scenes that one person alone saw are left out of all four.

    Raises:
        ValueError: no scene was seen by two people.
    """
    scores, pairs = [], 0
    for people in paths.values():
        found = [(sequence_score(a, b), edit_distance(a, b)) for a, b in combinations(people.values(), 2)]
        pairs += len(found)
        if found:
            scores.append(np.mean(found, 0))
    if not scores:
        raise ValueError("no scene was seen by two people: there is no pair to compare.")
    score, edits = np.mean(scores, 0)
    return dict(SS=float(score), FED=float(edits), pairs=pairs, scenes=len(scores))


# --- of whole data sets ----------------------------------------------------------------------------------------------


@METRICS.register_module()
class ScanpathMetrics(BaseMetric):
    """Figures of predicted paths, from what `OAT.predict` gives. Of several paths for a scene each counts alike.

    `SS` and `FED`, the means over scenes; `hit`, `length`, `search`, `refixation` and `revisit` of the predicted paths,
    and `delta` against those of the true ones; `SIM`; and `MM_vector`, `MM_direction`, `MM_length` and `MM_position` of
    the centers of cells, over the pairs of which both have two fixations. What each is, and what it is of, is logged.

    Args:
        rows, columns: of the grid; MultiMatch is measured in cells of it.
        prefix: before the names of the figures.

    Raises:
        ValueError: there is no scene, or one came without its true path.
    """

    default_prefix = "gaze"

    def __init__(self, rows: int, columns: int, collect_device: str = "cpu", prefix: str | None = None):
        super().__init__(collect_device, prefix)
        self.size = (columns, rows)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            if "truth" not in sample:
                raise ValueError(f"{sample['name']} came without its true path.")
            centers = sample["cells"].numpy()[:, ::-1] + 0.5
            truth = sample["truth"]
            matches = [
                multimatch(centers[path], centers[truth], self.size)[:4]
                for path in sample["paths"]
                if min(len(path), len(truth)) > 1
            ]
            self.results.append(
                dict(
                    target=sample["target"],
                    truth=truth,
                    paths=sample["paths"],
                    ended=sum(sample["ended"]),
                    similarity=sample["similarity"],
                    scores=np.mean([(sequence_score(p, truth), edit_distance(p, truth)) for p in sample["paths"]], 0),
                    matches=matches,
                )
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        if not results:
            raise ValueError("ScanpathMetrics: there is no scene to measure.")
        paths = [(path, result["target"]) for result in results for path in result["paths"]]
        predicted = mean_behavior(*zip(*paths))
        truth = mean_behavior([r["truth"] for r in results], [r["target"] for r in results])
        score, edits = np.mean([result["scores"] for result in results], 0)
        matches = [match for result in results for match in result["matches"]]
        figures = dict(
            SS=float(score),
            FED=float(edits),
            SIM=float(np.mean([result["similarity"] for result in results])),
            delta=behavior_delta(predicted, truth),
            **predicted._asdict(),
        )
        if matches:
            figures |= dict(zip((f"MM_{n}" for n in MultiMatch._fields), np.mean(matches, 0).tolist()))
        empty = sum(not path for path, _ in paths)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in truth._asdict().items())
        print_log(
            f"{len(results)} scenes, {len(paths)} paths ({sum(r['ended'] for r in results)} chose the end, {empty} "
            f"empty). SS (share) and FED (edits): strings of objects, nothing clustered. The truth: {shown}. "
            f"MultiMatch (shares): in cells, {len(matches)} pairs of at least two fixations each, not simplified.",
            logger="current",
        )
        return {name: round(value, 4) for name, value in figures.items()}
