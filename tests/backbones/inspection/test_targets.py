"""Scores, and what they refuse."""

import pytest
import torch

from attlas.backbones.inspection.targets import (
    cross_entropy,
    evaluate,
    extreme_classes,
    log_probability,
    logit,
    of_sample,
)

LOGITS = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def test_scores_of_classes():
    torch.testing.assert_close(logit(2)(LOGITS), LOGITS[:, 2])
    torch.testing.assert_close(logit([4, 0, 1])(LOGITS), LOGITS[[0, 1, 2], [4, 0, 1]])
    torch.testing.assert_close(log_probability(1)(LOGITS), LOGITS.log_softmax(1)[:, 1])
    labels = torch.tensor([4, 0, 1])
    expected = torch.nn.functional.cross_entropy(LOGITS, labels, reduction="none")
    torch.testing.assert_close(cross_entropy(labels)(LOGITS), expected)
    most, least = extreme_classes(LOGITS)
    assert (most == LOGITS.argmax(1)).all()
    assert (least == LOGITS.argmin(1)).all()
    for i in range(3):
        torch.testing.assert_close(logit(labels).of_sample(i)(LOGITS[i : i + 1]), LOGITS[i, labels[i]][None])
    torch.testing.assert_close(of_sample(logit(2), 7)(LOGITS[:1]), LOGITS[:1, 2])  # one class for all


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (logit(5), "class 5: the network has 5 classes, 0 to 4"),
        (logit(-1), "class -1"),
        (logit([0, 1]), "classes are 2, and the batch has 3"),
        (lambda output: output, r"one number for each of the 3 samples, and gave shape \(3, 5\)"),
        (lambda output: output[:, 0] / torch.tensor([1, 0, 1]) * 0, "score of sample 1 is nan"),
    ],
)
def test_bad_scores(score, said):
    with pytest.raises(ValueError, match=said):
        evaluate(score, LOGITS, 3)


def test_bad_arguments():
    for classes in (1.5, [[0, 1]], [], True):
        with pytest.raises(ValueError, match="classes must be a number of a class"):
            logit(classes)
    with pytest.raises(ValueError, match="takes logits"):
        logit(0)((LOGITS,))
    with pytest.raises(TypeError, match=r"floats \(3,\).*torch\.int64"):
        evaluate(lambda output: output.argmax(1), LOGITS, 3)
    with pytest.raises(ValueError, match="sample 3: the score is of 3 samples"):
        logit([0, 1, 2]).of_sample(3)
