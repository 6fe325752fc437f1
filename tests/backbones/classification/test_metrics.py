"""Kappa, Matthews' coefficient and the means over classes against their definitions by pairs of images."""

import math

import numpy as np
import pytest

from attlas.backbones.classification.metrics import agreement, confidence_gap, confused_pairs


def confusion_of(truth, predicted, classes):
    found = np.zeros((classes, classes), np.int64)
    np.add.at(found, (truth, predicted), 1)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_by_definition(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, 200)
    predicted = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 4, 200))
    found = agreement(confusion_of(truth, predicted, 5))  # one class is absent
    observed = (truth == predicted).mean()
    chance = sum((truth == c).mean() * (predicted == c).mean() for c in range(5))
    assert found["kappa"] == pytest.approx((observed - chance) / (1 - chance))
    one_hot = [np.eye(5)[labels] - np.eye(5)[labels].mean(0) for labels in (truth, predicted)]
    covariance = [[(a * b).sum() for b in one_hot] for a in one_hot]
    assert found["mcc"] == pytest.approx(covariance[0][1] / math.sqrt(covariance[0][0] * covariance[1][1]))
    precision = [(truth[predicted == c] == c).mean() for c in range(4)]
    recall = [(predicted[truth == c] == c).mean() for c in range(4)]
    assert found["precision"] == pytest.approx(100 * np.mean(precision))
    assert found["recall"] == pytest.approx(100 * np.mean(recall))
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall)]
    assert found["f1"] == pytest.approx(100 * np.mean(f1))


def test_two_classes_are_the_correlation():
    truth, predicted = np.array([0, 0, 0, 1, 1, 1, 1, 0]), np.array([0, 0, 1, 1, 1, 0, 1, 0])
    found = agreement(confusion_of(truth, predicted, 2))
    assert found["mcc"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1])


def test_extremes():
    perfect = agreement(np.diag([3, 4, 5]))
    assert perfect == dict(kappa=1.0, mcc=1.0, precision=100.0, recall=100.0, f1=100.0)
    assert agreement(np.array([[0, 4], [4, 0]]))["kappa"] == -1
    constant = agreement(np.array([[6, 0], [4, 0]]))  # everything is taken for one class
    assert (constant["kappa"], constant["mcc"]) == (0, 0)
    assert constant["precision"] == pytest.approx(30)
    one = agreement(np.array([[7, 0], [0, 0]]))  # one class alone: chance agrees wholly
    assert (one["kappa"], one["mcc"], one["recall"]) == (0, 0, 100)


def test_confidence_gap():
    confidence, right = np.array([0.9, 0.7, 0.5, 0.3]), np.array([True, True, False, False])
    assert confidence_gap(confidence, right) == pytest.approx(
        dict(confidence_right=80.0, confidence_wrong=40.0, confidence_gap=40.0)
    )
    assert confidence_gap(confidence, right | True) == pytest.approx(dict(confidence_right=60.0))
    assert confidence_gap(confidence, right & False) == pytest.approx(dict(confidence_wrong=60.0))


def test_confused_pairs():
    confusion = np.array([[9, 2, 0], [5, 9, 2], [0, 0, 9]])
    assert confused_pairs(confusion, "abc") == [("b", "a", 5), ("a", "b", 2), ("b", "c", 2)]
    assert confused_pairs(confusion, "abc", most=1) == [("b", "a", 5)]
    assert confused_pairs(np.diag([1, 2]), "ab") == []
