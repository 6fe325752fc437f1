"""The scores that COSTARR is compared with, each by its formula, and what all of them have in common."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from attlas.backbones.open_sets.fitting import SCORES
from attlas.backbones.open_sets.scores import (
    ClassMoments,
    Energy,
    Ghost,
    MaxLogit,
    MaxSoftmax,
    NearestMean,
    NNGuide,
    fit_pareto,
    pareto_cdf,
)

CLASSES, DIM = 3, 8


@pytest.fixture
def problem():
    """Weight, bias, training features and labels: three clouds of features, told apart but for some."""
    weight, bias = torch.randn(CLASSES, DIM), torch.randn(CLASSES)
    labels = torch.arange(120) % CLASSES
    features = torch.randn(120, DIM) + 1.5 * weight[labels]
    return weight, bias, features, labels


def fitted(score, features, labels, size=50):
    for _ in range(score.passes):
        for begin in range(0, len(features), size):
            score.add(features[begin : begin + size], labels[begin : begin + size])
        score.finish()
    return score


def test_what_needs_no_fit(problem):
    weight, bias, features, _ = problem
    logits = features @ weight.T + bias
    torch.testing.assert_close(MaxSoftmax(weight, bias)(features), logits.softmax(1).amax(1))
    torch.testing.assert_close(MaxSoftmax(weight, bias, temperature=3)(features), (logits / 3).softmax(1).amax(1))
    torch.testing.assert_close(MaxLogit(weight, bias)(features), logits.amax(1))
    torch.testing.assert_close(Energy(weight, bias)(features), logits.exp().sum(1).log())
    torch.testing.assert_close(Energy(weight, bias, temperature=2)(features), 2 * (logits / 2).exp().sum(1).log())


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_nearest_mean(problem, distance):
    weight, bias, features, labels = problem
    right = (features @ weight.T + bias).argmax(1) == labels
    assert not right.all()
    means = torch.stack([features[right & (labels == c)].mean(0) for c in range(CLASSES)])
    test = torch.randn(10, DIM)
    if distance == "euclidean":
        expected = -(test[:, None] - means).norm(dim=2).amin(1)
    else:
        expected = F.cosine_similarity(test[:, None], means, dim=2).amax(1) - 1
    score = fitted(NearestMean(weight, bias, distance=distance), features, labels)
    torch.testing.assert_close(score(test), expected)
    kept = labels != 1  # a class without a sample is near to nothing
    score = fitted(NearestMean(weight, bias), features[kept], labels[kept])
    torch.testing.assert_close(score(test), -(test[:, None] - means[[0, 2]]).norm(dim=2).amin(1))


def test_nearest_neighbor_guidance(problem):
    weight, bias, features, labels = problem
    test = torch.randn(10, DIM)
    energy = lambda x: (x @ weight.T + bias).logsumexp(1)  # noqa: E731
    similar = F.cosine_similarity(test[:, None], features, dim=2) * energy(features)
    expected = similar.topk(10, dim=1).values.mean(1) * energy(test)
    torch.testing.assert_close(fitted(NNGuide(weight, bias), features, labels)(test), expected)


def test_the_bank_is_a_fair_draw_whatever_the_batches(problem):
    weight, bias, features, labels = problem
    one = fitted(NNGuide(weight, bias, neighbors=2, bank=30), features, labels, size=120)
    many = fitted(NNGuide(weight, bias, neighbors=2, bank=30), features, labels, size=7)
    assert one.samples.shape == (30, DIM)
    torch.testing.assert_close(one.samples.sort(0).values, many.samples.sort(0).values)
    energy = (features @ weight.T + bias).logsumexp(1, keepdim=True)
    chosen = torch.cdist(one.samples, F.normalize(features, dim=1) * energy).argmin(1)
    assert chosen.max() > 90  # the late ones, too
    assert chosen.min() < 30


def test_ghost(problem):
    weight, bias, features, labels = problem
    features[:, 3] = 2.0  # never changes: does not count
    logits = features @ weight.T + bias
    right = logits.argmax(1) == labels
    score = fitted(Ghost(weight, bias, tail="none"), features, labels)
    test = torch.randn(10, DIM)
    top, classes = (test @ weight.T + bias).max(1)
    used = [i for i in range(DIM) if i != 3]
    far = []
    for row, c in zip(test, classes):
        own = features[right & (labels == c)]
        far.append((((row - own.mean(0)) / own.std(0))[used]).abs().sum())
    torch.testing.assert_close(score(test), top / torch.stack(far), rtol=1e-4, atol=1e-5)
    tail = fitted(Ghost(weight, bias), features, labels)
    probability = tail(test)
    assert ((probability >= 0) & (probability <= 1)).all()
    for c in range(CLASSES):  # within a class the order stays, where the probability is not 0 or 1
        own = (classes == c) & (probability > 0) & (probability < 1)
        assert (score(test)[own].argsort() == probability[own].argsort()).all()
    known = tail(features[right])
    assert known.mean() == pytest.approx(0.5, abs=0.1)  # a distribution function of its own samples


def test_ghost_needs_deviations(problem):
    weight, bias, features, labels = problem
    kept = labels != 1
    with pytest.raises(ValueError, match="class 1 has 0"):
        fitted(Ghost(weight, bias), features[kept], labels[kept])
    weight = torch.eye(CLASSES, DIM)  # the features of class 0 are all alike
    rows = torch.stack([6 * weight[0], 6 * weight[0], 3 * weight[1], 6 * weight[1], 3 * weight[2], 6 * weight[2]])
    with pytest.raises(ValueError, match="no feature changes among the right samples of class 0"):
        fitted(Ghost(weight, None), rows, torch.tensor([0, 0, 1, 1, 2, 2]))


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.4])
def test_the_pareto_distribution(shape):
    values = torch.tensor(scipy.stats.genpareto.rvs(shape, loc=1, scale=2, size=4000, random_state=0))
    location, scale, found = fit_pareto(values)
    assert location == values.min()
    assert float(scale) == pytest.approx(2, rel=0.08)
    assert float(found) == pytest.approx(shape, abs=0.06)
    grid = torch.linspace(0, 12, 50, dtype=torch.float64)
    expected = scipy.stats.genpareto.cdf(grid.numpy(), float(found), loc=float(location), scale=float(scale))
    np.testing.assert_allclose(pareto_cdf(grid, location, scale, found), expected, atol=1e-9)
    exponential = pareto_cdf(grid, location, scale, torch.tensor(0.0))
    np.testing.assert_allclose(exponential, scipy.stats.expon.cdf(grid.numpy(), location, scale), atol=1e-9)


def test_equal_values_are_a_step():
    location, scale, shape = fit_pareto(torch.full((5,), 3.0))
    values = pareto_cdf(torch.tensor([2.9, 3.0, 4.0]), location, scale, shape)
    assert values.tolist() == [0, 1, 1]


def test_moments_in_a_stream():
    labels = torch.randint(0, 4, (500,))
    features = torch.randn(500, 6) * 1e-3 + 1e3  # of which sums of squares would lose the deviations
    moments = ClassMoments(5, 6, features)
    for part in torch.arange(500).split(37):
        moments.add(features[part], labels[part])
    assert moments.counts.tolist() == [*labels.bincount().tolist(), 0]
    for c in range(4):
        own = features[labels == c].double()
        torch.testing.assert_close(moments.means[c], own.mean(0))
        torch.testing.assert_close(moments.squares[c], (own - own.mean(0)).square().sum(0), rtol=1e-6, atol=0)


# --- what all have in common -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_every_score(problem, name):
    weight, bias, features, labels = problem
    score = fitted(SCORES[name](weight, bias), features, labels)
    test = torch.randn(6, DIM)
    both = score(test)
    assert both.shape == (6,)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both, torch.cat([score(row[None]) for row in test]))  # one by one
    assert score(test[:0]).shape == (0,)
    assert score(features).mean() > score(-3 * features.mean(0).expand(5, -1) + torch.randn(5, DIM)).mean()
    again = SCORES[name](weight, bias)
    again.load({name: getattr(score, name) for name in score.STATE})
    torch.testing.assert_close(again(test), both, rtol=0, atol=0)
    assert score(test.half()).dtype == torch.float32


@pytest.mark.parametrize("name", SCORES)
def test_bad_input_is_refused(problem, name):
    weight, bias, features, labels = problem
    score = SCORES[name](weight, bias)
    if score.passes:
        with pytest.raises(RuntimeError, match="not fitted yet"):
            score(features)
        with pytest.raises(ValueError, match="known classes, 0 to 2, got -1"):
            score.add(features, labels - 1)
        with pytest.raises(ValueError, match="labels must be integers"):
            score.add(features, labels.float())
        with pytest.raises(ValueError, match="NaN or infinite"):
            score.add(features / 0, labels)
        fitted(score, features, labels)
        tensors = {key: getattr(score, key) for key in score.STATE}
        first = next(iter(tensors))
        for wrong, said in (
            ({}, "has the tensors"),
            ({**tensors, first: tensors[first][:, :3]}, "must be of shape"),
            ({**tensors, first: tensors[first] * torch.nan}, "must be floats"),
        ):
            with pytest.raises(ValueError, match=said):
                SCORES[name](weight, bias).load(wrong)
    with pytest.raises(ValueError, match="fitted"):
        score.add(features, labels)
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(features * torch.nan)
    with pytest.raises(ValueError, match=r"features must be floats of shape"):
        score(features[:, 1:])
    with pytest.raises(ValueError, match="weight must be floats"):
        SCORES[name](weight[0])
    with pytest.raises(ValueError, match="at least two classes"):
        SCORES[name](weight[:1])
    with pytest.raises(ValueError, match="bias must be of shape"):
        SCORES[name](weight, bias[1:])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("energy", dict(temperature=0), "temperature must be a positive number"),
        ("max_softmax", dict(temperature=float("nan")), "temperature"),
        ("nearest_mean", dict(distance="l1"), "distance is 'l1'"),
        ("nnguide", dict(neighbors=0), "neighbors must be an integer"),
        ("nnguide", dict(neighbors=9, bank=5), "at most bank=5"),
        ("ghost", dict(tail="weibull"), "tail is 'weibull'"),
    ],
)
def test_bad_options_are_refused(problem, name, options, said):
    with pytest.raises(ValueError, match=said):
        SCORES[name](*problem[:2], **options)


def test_too_few_neighbors(problem):
    with pytest.raises(ValueError, match="neighbors=10, and the fitting data have 4"):
        fitted(NNGuide(*problem[:2]), problem[2][:4], problem[3][:4])
