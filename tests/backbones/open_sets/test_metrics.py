"""Open-set metrics: the record of the curve's authors' code, hand-made cases, and every mistake that users reported."""

import math

import numpy as np
import pytest
from golden_records import Record

from attlas.backbones.open_sets.metrics import (
    accepting_threshold,
    accuracy_at,
    auoscr,
    aupr,
    auroc,
    best_threshold,
    ccr_at_fpr,
    fpr_at_tpr,
    oscr,
    rates_at,
)


def random_samples(seed, count=200, classes=5, levels=None):
    """Scores, labels and predictions; with `levels` the scores take so many values, and tie."""
    random = np.random.default_rng(seed)
    labels = random.integers(-1, classes, count)
    predictions = np.where(random.random(count) < 0.7, labels.clip(0), random.integers(0, classes, count))
    scores = random.normal(size=count) + (labels >= 0) + 0.5 * (labels == predictions)
    return (scores if levels is None else np.round(scores * levels) / levels), labels, predictions


def brute_oscr(scores, labels, predictions):
    known, unknown = labels >= 0, labels < 0
    points = []
    for t in sorted(set(scores.tolist()), reverse=True):
        right = sum(s >= t and k and p == y for s, k, p, y in zip(scores, known, predictions, labels))
        points.append((sum(scores[unknown] >= t) / unknown.sum(), right / known.sum()))
    return np.array(points)


def test_equals_the_record():
    record = Record("costarr/metrics")
    scores, labels, predictions = (record.output(number).numpy() for number in (3, 4, 5))
    labels, predictions = labels.astype(int), predictions.astype(int)
    curve = oscr(scores, labels, predictions)
    np.testing.assert_allclose(curve.fpr, record.output(1), atol=1e-7)
    np.testing.assert_allclose(curve.ccr, record.output(2), atol=1e-7)
    best = best_threshold(scores, labels, predictions)
    found = [auoscr(curve, True), auroc(scores, labels), best.accuracy, best.value]
    np.testing.assert_allclose(found, record.output(0), atol=1e-6)


@pytest.mark.parametrize("levels", [None, 1, 3])
def test_the_curve_is_that_of_the_definition(levels):
    for seed in range(5):
        found = random_samples(seed, levels=levels)
        curve = oscr(*found)
        np.testing.assert_allclose(np.stack([curve.fpr, curve.ccr], 1), brute_oscr(*found), atol=1e-12)


def test_the_curve_ends_at_the_closed_set_accuracy():
    scores, labels, predictions = random_samples(0)
    known = labels >= 0
    curve = oscr(scores, labels, predictions)
    assert curve.fpr[-1] == 1
    assert curve.closed_set_accuracy == pytest.approx((labels == predictions)[known].mean())
    assert curve.closed_set_accuracy < 0.9  # an implementation that forgets who is right ends at 1
    assert ccr_at_fpr(curve, 1.0) == curve.closed_set_accuracy


def test_where_the_curve_starts_is_a_choice():
    labels, predictions = np.array([-1, 0, 0, -1]), np.zeros(4, int)
    lucky = oscr(np.array([1.0, 3.0, 2.0, 0.0]), labels, predictions)  # known samples are on top
    assert auoscr(lucky, True) == auoscr(lucky, False) == 1.0
    unlucky = oscr(np.array([4.0, 3.0, 2.0, 0.0]), labels, predictions)
    assert auoscr(unlucky, True) == pytest.approx(0.5)
    assert math.isnan(auoscr(unlucky, False))  # no threshold has FPR 0
    assert math.isnan(ccr_at_fpr(unlucky, 0.1))
    assert ccr_at_fpr(unlucky, 0.5) == 1.0


def test_ccr_at_an_fpr_is_of_a_threshold_that_exists():
    scores, labels, predictions = random_samples(2)
    curve = oscr(scores, labels, predictions)
    for fpr in (0.0, 0.01, 0.1, 0.5):
        within = [
            ((labels == predictions) & (scores >= t))[labels >= 0].mean()
            for t in scores
            if (scores[labels < 0] >= t).mean() <= fpr
        ]
        assert ccr_at_fpr(curve, fpr) == pytest.approx(max(within))
    with pytest.raises(ValueError, match="fpr must lie in"):
        ccr_at_fpr(curve, 5)


@pytest.mark.parametrize("levels", [None, 1])
def test_auroc_counts_pairs_and_ties_by_half(levels):
    scores, labels, _ = random_samples(1, levels=levels)
    known, unknown = scores[labels >= 0][:, None], scores[labels < 0]
    pairs = (known > unknown).mean() + 0.5 * (known == unknown).mean()
    assert auroc(scores, labels) == pytest.approx(pairs)
    assert auroc(-scores, -1 - labels.clip(-1, 0)) == pytest.approx(pairs)  # whoever is positive
    assert auroc(np.ones(4), np.array([0, 1, -1, -1])) == 0.5
    assert auroc(np.random.default_rng(0).random(20_000), np.arange(20_000) % 3 - 1) == pytest.approx(0.5, abs=0.01)


def test_no_result_depends_on_the_order():
    scores, labels, predictions = random_samples(3, levels=1)  # many ties
    order = np.random.default_rng(0).permutation(len(scores))
    for first, second in (((scores, labels, predictions), (scores[order], labels[order], predictions[order])),):
        for metric in (lambda *a: auoscr(oscr(*a), True), best_threshold, lambda *a: ccr_at_fpr(oscr(*a), 0.1)):
            assert metric(*first) == metric(*second)
        for metric in (auroc, lambda *a: fpr_at_tpr(*a, "known"), lambda *a: aupr(*a, "unknown")):
            assert metric(*first[:2]) == pytest.approx(metric(*second[:2]), abs=1e-15)


def test_who_is_positive_is_said():
    # 20 known, one of them low; 20 unknown, half of them high: the two rates are far apart
    scores = np.array([10.0] * 19 + [0.0] + [9.0] * 10 + [1.0] * 10)
    labels = np.array([0] * 20 + [-1] * 20)
    assert fpr_at_tpr(scores, labels, "known") == 0.0  # 19 of 20 known are above all unknown
    scores[:2] = 0.5
    assert fpr_at_tpr(scores, labels, "known") == 1.0  # 17 are above; the next are below all unknown
    assert fpr_at_tpr(scores, labels, "unknown") == pytest.approx(3 / 20)  # 3 known are rejected with all unknown
    assert fpr_at_tpr(-scores, -1 - labels, "known") == fpr_at_tpr(scores, labels, "unknown")
    with pytest.raises(ValueError, match="'known' or 'unknown'"):
        fpr_at_tpr(scores, labels, "in")
    with pytest.raises(ValueError, match="tpr must lie"):
        fpr_at_tpr(scores, labels, "known", 95)


def test_precision_and_recall_of_both_sides():
    scores, labels = np.array([4.0, 3.0, 2.0, 1.0]), np.array([0, -1, 0, -1])
    assert aupr(scores, labels, "known") == pytest.approx((1 + 2 / 3) / 2)
    assert aupr(scores, labels, "unknown") == pytest.approx((1 + 2 / 3) / 2)
    labels = np.array([0, -1, -1, -1])
    assert aupr(scores, labels, "known") == 1.0
    labels = np.array([-1, -1, -1, 0])
    assert aupr(scores, labels, "known") == 0.25
    assert aupr(scores, labels, "unknown") == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    assert aupr(np.ones(4), labels, "unknown") == 0.75  # ties together


def test_thresholds_from_held_out_data():
    scores, labels, predictions = random_samples(4)
    best = best_threshold(scores, labels, predictions)
    tried = {t: accuracy_at(t, scores, labels, predictions) for t in scores.tolist()}
    assert best.accuracy == max(tried.values())
    assert best.value == min(t for t, accuracy in tried.items() if accuracy == best.accuracy)
    known = scores[labels >= 0]
    threshold = accepting_threshold(known, 0.95)
    assert threshold in known
    assert (known >= threshold).mean() >= 0.95
    assert (known > threshold).mean() < 0.95
    assert rates_at(threshold, scores, labels)["known_accepted"] == (known >= threshold).mean()
    assert rates_at(threshold, scores, labels)["unknown_rejected"] == (scores[labels < 0] < threshold).mean()
    assert accepting_threshold(np.arange(20.0), 0.95) == 1.0  # 19 of 20
    assert accepting_threshold(np.ones(3), 0.5) == 1.0


def test_accuracy_with_rejection_by_hand():
    scores, labels, predictions = (
        np.array([3.0, 2.0, 1.0, 2.5, 0.5]),
        np.array([0, 1, 1, -1, -1]),
        np.array([0, 0, 1, 0, 1]),
    )
    assert accuracy_at(1.0, scores, labels, predictions) == 3 / 5  # the first, the third; and the last is rejected
    assert accuracy_at(2.6, scores, labels, predictions) == 3 / 5


@pytest.mark.parametrize(
    ("scores", "labels", "predictions", "said"),
    [
        ([1.0, math.nan], [0, -1], [0, 0], "1 of 2 scores are NaN, the first is number 1"),
        ([1.0, 2.0], [0, 0], [0, 0], "2 known .* and 0 unknown"),
        ([1.0, 2.0], [-1, -1], [0, 0], "0 known .* and 2 unknown"),
        ([1.0, 2.0], [0, -1], [0, -1], "predictions must be known classes"),
        ([1.0, 2.0], [0, -1, 1], [0, 0], "labels must be of shape"),
        ([[1.0], [2.0]], [0, -1], [0, 0], r"scores must be of shape"),
        ([1.0, 2.0], [0.0, -1.0], [0, 0], "labels must be integers"),
    ],
)
def test_bad_input_is_refused(scores, labels, predictions, said):
    for metric in (oscr, best_threshold):
        with pytest.raises(ValueError, match=said):
            metric(np.array(scores), np.array(labels), np.array(predictions))


def test_thresholds_that_are_none_are_refused():
    with pytest.raises(ValueError, match="none of them NaN"):
        accepting_threshold([1.0, math.nan])
    with pytest.raises(ValueError, match="share must lie"):
        accepting_threshold([1.0], 95)
    with pytest.raises(ValueError, match="finite number"):
        accuracy_at(math.nan, [1.0, 2.0], [0, -1], [0, 0])
    with pytest.raises(ValueError, match="finite number"):
        best_threshold([math.inf, 2.0], [0, -1], [0, 0])
