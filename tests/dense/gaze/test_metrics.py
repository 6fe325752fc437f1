"""Metrics of scanpaths: the authors' figures, what holds of every path, and what is refused."""

import random

import numpy as np
import pytest
import torch
from golden_records import Record

from attlas.dense.gaze import metrics
from attlas.dense.gaze.metrics import (
    Behavior,
    ScanpathMetrics,
    behavior,
    behavior_delta,
    edit_distance,
    human_agreement,
    mean_behavior,
    multimatch,
    sequence_score,
    similarity,
)


def test_metrics_equal_the_authors():
    record = Record("oat/metrics")
    truth, predicted = (
        [[int(place) for place in row if place >= 0] for row in record.input(name)] for name in ("truth", "pred")
    )
    for pair, expected in zip(zip(predicted, truth), record.output(0)):
        assert abs(sequence_score(*pair) - expected) < 1e-6
    targets = [path[-1] for path in truth]
    means = [mean_behavior(paths, targets) for paths in (truth, predicted)]
    assert np.abs(np.array(means) - record.output(1).numpy()).max() < 1e-6
    assert abs(behavior_delta(means[1], means[0]) - float(record.output(2))) < 1e-6


def draw(random_numbers, most=9, objects=5):
    return [random_numbers.randrange(objects) for _ in range(random_numbers.randint(1, most))]


def longest_common(a, b):
    """By the definition, over all subsequences."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def edits(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b[1:]) + (a[0] != b[0]), edits(a[1:], b) + 1, edits(a, b[1:]) + 1)


def test_strings_by_their_definitions():
    draws = random.Random(0)
    for _ in range(12):
        a, b = draw(draws, 5), draw(draws, 5)
        assert sequence_score(a, b) == sequence_score(b, a) == longest_common(a, b) / max(len(a), len(b))
        assert edit_distance(a, b) == edit_distance(b, a) == edits(a, b)
        assert sequence_score(a, a) == 1
        assert edit_distance(a, a) == 0
        assert sequence_score(a, [place + 10 for place in b]) == 0
    assert edit_distance([], [1, 2]) == 2
    assert sequence_score([1, 2, 3], [1, 3], gap=-0.25) == (2 - 0.25) / 3
    assert sequence_score([1, 2], [2, 3], gap=-0.75) == 0  # two mismatches are better than two gaps
    assert sequence_score([], [1, 2], gap=-1) == -1
    with pytest.raises(ValueError, match="gap is 1"):
        sequence_score([1], [1], gap=1)
    assert sequence_score([], [1]) == 0


def test_fractions_sum_to_one_and_the_truth_is_its_own():
    draws = random.Random(1)
    for _ in range(50):
        path = draw(draws)
        found = behavior(path, path[-1])
        assert abs(found.search + found.refixation + found.revisit - 1) < 1e-12
        assert found.hit == 1
        assert found.length == len(path)
        assert behavior_delta(found, found) == 0
    assert behavior([2, 2, 3, 2, 2], 3) == Behavior(0, 5, 0.4, 0.4, 0.2)
    assert behavior([], 3) == Behavior(0, 0, 0, 0, 0)
    assert behavior_delta(behavior([1, 1], 1), behavior([1, 2], 2)) == float("inf")  # who never refixates in truth


def test_the_similarity_of_single_objects_is_their_chance():
    chances = np.array([[0.2, 0.8], [0.5, 0.5]])
    assert abs(similarity(chances, np.eye(2)) - 0.35) < 1e-12
    assert similarity(np.eye(2), np.eye(2)) == 1
    with pytest.raises(ValueError, match="each row must be a distribution"):
        similarity(np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="both must be"):
        similarity(chances, np.eye(3))


def test_multimatch_of_known_paths():
    path = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    assert multimatch(path, path, (6, 8), ([1, 2, 3], [1, 2, 3])) == (1, 1, 1, 1, 1)
    # moved by (3, 4), half the diagonal of 10: all else is alike
    assert multimatch(path, np.add(path, [3, 4]), (6, 8)) == (1, 1, 1, 0.5, None)
    # one saccade to the right and one back: vectors differ by 6, directions by half a turn
    found = multimatch([[0, 0], [3, 0]], [[3, 0], [0, 0]], (6, 8), ([1, 1], [2, 1]))
    assert np.allclose(found, (1 - 6 / 20, 0, 1, 1 - 3 / 10, 0.5))
    # a saccade in two halves is aligned with the whole: both halves differ from it by half its length
    halves = multimatch([[0, 0], [4, 0]], [[0, 0], [2, 0], [4, 0]], (6, 8))
    assert np.allclose(halves[:4], (1 - 2 / 20, 1, 1 - 2 / 10, 1 - 1 / 10))


def test_the_alignment_is_the_cheapest_of_all():
    def cheapest(cost, i=0, j=0):
        if (i + 1, j + 1) == cost.shape:
            return 0.0
        ways = [(i + a, j + b) for a, b in ((0, 1), (1, 0), (1, 1)) if i + a < len(cost) and j + b < cost.shape[1]]
        return min(cost[way] + cheapest(cost, *way) for way in ways)

    for seed in range(10):
        numbers = np.random.default_rng(seed)
        cost = numbers.random((int(numbers.integers(1, 6)), int(numbers.integers(1, 6))))
        way = metrics._alignment(cost)
        assert tuple(way[0]) == (0, 0)
        assert tuple(way[-1] + 1) == cost.shape
        assert abs(sum(cost[tuple(place)] for place in way[1:]) - cheapest(cost)) < 1e-12


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([[1, 1]], "two fixations at least"),
        ([[1, 1], [7, 1]], "leaves the 6 x 8"),
        ([[1, 1], [float("nan"), 1]], "holds NaN"),
    ],
)
def test_bad_paths_are_refused(path, message):
    with pytest.raises(ValueError, match=message):
        multimatch(path, [[0, 0], [1, 1]], (6, 8))


def test_nobody_is_compared_with_himself():
    alike, other = [1, 2, 3], [4, 5, 6]
    found = human_agreement({"a": {"one": alike, "two": other}, "b": {"one": alike}})
    assert found == dict(SS=0.0, FED=3.0, pairs=1, scenes=1)
    with pytest.raises(ValueError, match="seen by two people"):
        human_agreement({"a": {"one": alike}})
    with pytest.raises(ValueError, match="nothing to compare"):
        sequence_score([], [])


def sample(paths, truth, target):
    cells = torch.stack([torch.arange(6) // 3, torch.arange(6) % 3], 1)
    ended = [True] * len(paths)
    return dict(paths=paths, truth=truth, target=target, cells=cells, ended=ended, similarity=0.5, name="x")


def test_the_metric_of_a_data_set():
    metric = ScanpathMetrics(rows=2, columns=3)
    metric.process(None, [sample([[0, 1, 2]], [0, 1, 2], 2), sample([[3], [3, 4]], [3, 4], 4)])
    found = metric.evaluate(2)
    assert found["gaze/SS"] == round((1 + (0.5 + 1) / 2) / 2, 4)
    assert found["gaze/FED"] == 0.25
    assert found["gaze/SIM"] == 0.5
    assert found["gaze/MM_position"] == 1  # of the path of one fixation there is none
    assert found["gaze/hit"] == round(2 / 3, 4)
    with pytest.raises(ValueError, match="x came without its true path"):
        metric.process(None, [{k: v for k, v in sample([[1]], [1], 1).items() if k != "truth"}])
