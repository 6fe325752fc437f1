"""COSTARR as it was reconstructed: the worked example, the record, and what the formulas promise."""

import pytest
import torch
from golden_records import Record

from attlas.backbones.open_sets.costarr import Costarr

WEIGHT = torch.tensor([[1.0, 0, -0.5], [0, 1, 0.5]])
TRAINING = torch.tensor([[2.0, 0, 1], [1, 0, 0], [0, 2, 1], [0, 1, 0]]), torch.tensor([0, 0, 1, 1])


def fitted(weight, bias, samples, labels, **options):
    score = Costarr(weight, bias, **options)
    score.add(samples, labels)
    score.finish()
    return score


def problem(seed=0, classes=4, dim=12, count=80):
    """Weight, bias, features and labels, of which most are what the classifier says."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(classes, dim, generator=generator), torch.randn(classes, generator=generator)
    features = torch.randn(count, dim, generator=generator)
    labels = (features @ weight.T + bias).argmax(1)
    labels[::5] = (labels[::5] + 1) % classes
    return weight, bias, features, labels


def test_the_worked_example():
    score = fitted(WEIGHT, None, *TRAINING)
    assert score.lowest.tolist() == [-0.5, -0.5]
    assert score.highest.tolist() == [2.5, 2.5]
    test = torch.tensor([[1.0, 0.5, 2], [1.5, 0, 0.5]])
    logits = score.logits(test)
    torch.testing.assert_close(score.cosine(test, logits.argmax(1)), torch.tensor([0.491689, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(score.normalized(logits), torch.tensor([0.666667, 0.583333]), atol=1e-6, rtol=0)
    torch.testing.assert_close(score(test), torch.tensor([0.497230, 0.583333]), atol=1e-6, rtol=0)


def test_equals_the_record():
    record = Record("costarr/score-reconstruction")
    weight, bias = (record.state_dict()[f"fc.{name}"].double() for name in ("weight", "bias"))
    training, test = record.input("train"), record.input("test")
    labels = (training @ weight.T + bias).argmax(1)
    labels[::5] = (labels[::5] + 1) % len(weight)
    score = fitted(weight, bias, training, labels)
    logits = score.logits(test)
    found = score(test), score.cosine(test, logits.argmax(1)), score.normalized(logits), logits.argmax(1)
    for number, value in enumerate(found):
        torch.testing.assert_close(value.float(), record.output(number), atol=1e-6, rtol=1e-5)
    assert weight.numel() + bias.numel() == record.params


@pytest.mark.parametrize("features", ["both", "pre", "post"])
def test_mean_features_are_all_that_has_to_be_kept(features):
    """The definition, with the representation e and its means written out."""
    weight, bias, training, labels = (part.double() if part.is_floating_point() else part for part in problem())
    score = fitted(weight, bias, training, labels, features=features)

    def represented(f, c):
        parts = {"pre": [f], "post": [weight[c] * f], "both": [f, weight[c] * f]}
        return torch.cat(parts[features], dim=1)

    test = torch.randn(30, 12, dtype=torch.float64)
    classes = score.logits(test).argmax(1)
    right = score.logits(training).argmax(1) == labels
    own = represented(training, labels)
    means = torch.stack([own[right & (labels == c)].mean(0) for c in range(4)])
    expected = torch.cosine_similarity(represented(test, classes), means[classes], dim=1)
    torch.testing.assert_close(score.cosine(test, classes), expected, atol=1e-6, rtol=1e-6)
    if features != "both":  # another score than that of both
        assert (score(test) - fitted(weight, bias, training, labels)(test)).abs().max() > 1e-3


def test_scaling_features_and_bias_changes_nothing():
    weight, bias, training, labels = problem()
    test = torch.randn(20, 12)
    expected = fitted(weight, bias, training, labels)(test)
    scaled = fitted(weight, 7.5 * bias, 7.5 * training, labels)(7.5 * test)
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=1e-5)


def test_a_class_of_equal_samples():
    score = fitted(WEIGHT, None, torch.tensor([[2.0, 0, 1], [2, 0, 1], [0, 2, 1]]), torch.tensor([0, 0, 1]))
    own = torch.tensor([[2.0, 0, 1]])
    assert score.cosine(own, torch.tensor([0])).item() == pytest.approx(1)


def test_a_stream_equals_one_piece():
    weight, bias, training, labels = problem(count=301)
    test = torch.randn(20, 12)
    expected = fitted(weight, bias, training, labels)(test)
    for size in (1, 7, 128):
        score = Costarr(weight, bias)
        for begin in range(0, 301, size):
            score.add(training[begin : begin + size], labels[begin : begin + size])
        score.finish()
        torch.testing.assert_close(score(test), expected, atol=1e-5, rtol=1e-5)


def test_only_right_samples_are_fitted():
    weight, bias, training, labels = problem()
    right = (training @ weight.T + bias).argmax(1) == labels
    assert 0 < right.sum() < len(right)
    test = torch.randn(20, 12)
    both = fitted(weight, bias, training, labels)(test), fitted(weight, bias, training[right], labels[right])(test)
    torch.testing.assert_close(*both)


def test_a_class_without_a_right_sample():
    weight, bias, training, labels = problem()
    kept = labels != 2
    score = fitted(weight, bias, training[kept], labels[kept])
    test = torch.randn(200, 12)
    of_it = score.logits(test).argmax(1) == 2
    assert of_it.any()
    assert (score(test)[of_it] == 0).all()  # s = -1
    with pytest.raises(ValueError, match="class 2 has no fitting sample"):
        fitted(weight, bias, training[kept], labels[kept], unseen="raise")
    with pytest.raises(ValueError, match="no sample of the fitting data right"):
        fitted(weight, bias, training, ((training @ weight.T + bias).argmax(1) + 1) % 4)


def test_options_do_what_they_say():
    weight, bias, training, labels = problem()
    test = 3 * torch.randn(100, 12)
    plain = fitted(weight, bias, training, labels)
    logits = plain.logits(test)
    z, s = plain.normalized(logits), plain.cosine(test, logits.argmax(1))
    assert z.max() > 1  # not clipped
    own = plain.logits(training)[plain.logits(training).argmax(1) == labels]

    def asked(**options):
        return fitted(weight, bias, training, labels, **options)(test)

    torch.testing.assert_close(asked(clip=True), z.clamp(0, 1) * (1 + s) / 2)
    torch.testing.assert_close(asked(similarity="positive_cosine"), z * s.clamp(min=0))
    torch.testing.assert_close(asked(similarity="none"), z)
    torch.testing.assert_close(asked(logit_norm="none"), logits.amax(1) * (1 + s) / 2)
    c = logits.argmax(1)
    low, high = own.amin(0)[c], own.amax(0)[c]
    torch.testing.assert_close(asked(logit_norm="per_class"), (logits.amax(1) - low) / (high - low) * (1 + s) / 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(features="all"), "features is 'all'; it may be 'both', 'pre', 'post'"),
        (dict(similarity="dot"), "similarity is 'dot'"),
        (dict(logit_norm="class"), "logit_norm is 'class'"),
        (dict(unseen=0), "unseen is 0"),
        (dict(clip="yes"), "clip must be True or False"),
        (dict(clip=True, logit_norm="none"), "clip=True is of normalised logits"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Costarr(WEIGHT, None, **options)


def test_logits_that_never_differ_are_refused():
    with pytest.raises(ValueError, match="logits that differ"):
        fitted(WEIGHT, None, TRAINING[0][:1], TRAINING[1][:1], logit_norm="per_class")
