"""Scores that say from the features of a classifier whether an input is of a class that it knows.

A score takes what the last layer of a classifier reads, features f (B, D), with the layer's weight W (C, D) and bias b
(C,), from which it has the logits l = W f + b and the predicted class c = argmax l. It gives one number for each
sample, higher for surer known. All have one form:

    score = Energy(layer.weight, layer.bias)          # options by name
    for _ in range(score.passes):                     # 0 where nothing is fitted
        for features, labels in training_batches:
            score.add(features, labels)
        score.finish()
    score(features)                                   # (B,)

Fitting is in a stream: what is kept does not grow with the number of samples, but for one number of each (`Ghost`).
The scores that need means take only samples that the classifier gets right. `costarr.py` has another one of this form.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Score(nn.Module):
    """Base of the scores.

    A subclass brings `rate(features, logits) -> (B,)` and, if it is fitted, `collect(features, logits, labels, right)`
    for each batch (`right`: (B,) bool) and `close(number)` at the end of pass `number`, which leaves the tensors of
    `STATE` as attributes.

    Args:
        weight: weight (C, D) of the classifier's last layer.
        bias: its bias (C,), or None.

    Attributes:
        passes: number of times that the fitting data are gone through.
        STATE: names of the fitted tensors with their shapes, of "C", "D", numbers and, for any number, "N".
        UNBOUNDED: names of those that may hold infinity.
        options: what the constructor took besides, by name.
        fitted: whether the score can be asked.
    """

    passes = 1
    STATE: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    UNBOUNDED: ClassVar[frozenset[str]] = frozenset()
    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None, **options):
        super().__init__()
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ValueError(f"weight must be floats of shape (C, D), got {weight.dtype} of {tuple(weight.shape)}.")
        if len(weight) < 2:
            raise ValueError(f"weight must have at least two classes, got {tuple(weight.shape)}.")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be of shape (C,) = ({len(weight)},), got {tuple(bias.shape)}.")
        self.dtype = torch.promote_types(weight.dtype, torch.float32)  # sums of half types are in float32
        self.register_buffer("weight", weight.detach().to(self.dtype), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().to(self.dtype), persistent=False)
        self.options = options
        self.number = 0  # of the pass
        self.fitted = self.passes == 0
        for name in self.STATE:
            self.register_buffer(name, None)
        self.begin()

    def begin(self) -> None:
        """What fitting starts from."""

    def collect(self, features: Tensor, logits: Tensor, labels: Tensor, right: Tensor) -> None:
        raise TypeError(f"{type(self).__name__} is not fitted")

    def close(self, number: int) -> None:
        raise TypeError(f"{type(self).__name__} is not fitted")

    def rate(self, features: Tensor, logits: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define rate")

    def logits(self, features: Tensor) -> Tensor:
        """(B, C)."""
        return F.linear(features, self.weight, self.bias)  # type: ignore[arg-type]

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1] or not features.is_floating_point():
            raise ValueError(
                f"features must be floats of shape (B, D) = (B, {self.weight.shape[1]}), got {features.dtype} of "
                f"{tuple(features.shape)}."
            )
        if not torch.isfinite(features).all():
            raise ValueError("features are NaN or infinite: the input holds such values, or the network has diverged.")
        return features.to(self.weight)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Fit to a batch of known samples: features (B, D), labels (B,) from 0 to C - 1."""
        if self.number >= self.passes:
            raise ValueError(f"{type(self).__name__} was fitted in {self.passes} passes: make a new one to fit again.")
        features, labels = self._checked(features), labels.to(self.weight.device)
        if labels.shape != features.shape[:1] or labels.is_floating_point():
            raise ValueError(f"labels must be integers (B,) = ({len(features)},), got {tuple(labels.shape)}.")
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.weight)):
            raise ValueError(
                f"labels must be of known classes, 0 to {len(self.weight) - 1}, got {labels.min()} to {labels.max()}: "
                "a score is fitted to known samples alone."
            )
        logits = self.logits(features)
        self.collect(features, logits, labels.long(), logits.argmax(1) == labels)

    @torch.no_grad()
    def finish(self) -> None:
        """End a pass over the fitting data."""
        if self.number >= self.passes:
            raise ValueError(f"{type(self).__name__} was fitted already.")
        self.close(self.number)
        self.number += 1
        self.fitted = self.number == self.passes

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) -> scores (B,)."""
        if not self.fitted:
            raise RuntimeError(f"{type(self).__name__} is not fitted yet: {self.number} of {self.passes} passes.")
        features = self._checked(features)
        return self.rate(features, self.logits(features))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the fitted tensors, as `state_dict` gives them.

        Raises:
            ValueError: a tensor is missing, one too many, of another shape or type, or has values that are no numbers.
        """
        if tensors.keys() != self.STATE.keys():
            raise ValueError(
                f"a fitted {type(self).__name__} has the tensors {', '.join(self.STATE) or 'none'}, "
                f"got {', '.join(sorted(tensors)) or 'none'}."
            )
        sizes = dict(zip("CD3", (*self.weight.shape, 3)))
        for name, shape in self.STATE.items():
            value = tensors[name]
            expected = tuple(sizes.get(axis, size) for axis, size in zip(shape, value.shape))
            if value.ndim != len(shape) or tuple(value.shape) != expected or not value.numel():
                raise ValueError(f"{name} must be of shape ({', '.join(shape)}), {sizes}, got {tuple(value.shape)}.")
            wrong = torch.isnan(value) if name in self.UNBOUNDED else ~torch.isfinite(value)
            if not value.is_floating_point() or wrong.any():
                raise ValueError(f"{name} must be floats, got {value.dtype} with {int(wrong.sum())} that are none.")
            setattr(self, name, value.to(self.weight))
        self.number, self.fitted = self.passes, True


class ClassMoments:
    """Means, and sums of squared deviations, of the features of each class, in a stream and in float64.

    Args:
        classes: number of classes C.
        dim: number of features D.
        like: tensor whose device the sums are on.

    Attributes:
        counts: (C,) samples.
        means: (C, D).
        squares: (C, D), sums of squared differences to the mean.
    """

    def __init__(self, classes: int, dim: int, like: Tensor):
        self.counts = torch.zeros(classes, dtype=torch.float64, device=like.device)
        self.means = torch.zeros(classes, dim, dtype=torch.float64, device=like.device)
        self.squares = torch.zeros_like(self.means)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Features (B, D) of classes (B,). Parts are merged by their means (Chan, Golub and LeVeque, 1983): differences
        of large sums of squares would lose the digits of a small deviation."""
        features = features.double()
        classes, place = labels.unique(return_inverse=True)
        zeros = features.new_zeros(len(classes), features.shape[1])
        counts = place.bincount(minlength=len(classes)).double()[:, None]
        means = zeros.index_add(0, place, features) / counts
        squares = zeros.index_add(0, place, (features - means[place]).square())
        before = self.counts[classes][:, None]
        shift, total = means - self.means[classes], before + counts
        self.means[classes] += shift * counts / total
        self.squares[classes] += squares + shift.square() * before * counts / total
        self.counts[classes] += counts[:, 0]


# --- nothing to fit --------------------------------------------------------------------------------------------------


def _temperature(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"temperature must be a positive number, got {value!r}.")
    return float(value)


class MaxSoftmax(Score):
    """The largest probability of softmax(l / temperature), in [1 / C, 1]. Source: arXiv 1610.02136."""

    passes = 0

    def __init__(self, weight: Tensor, bias: Tensor | None = None, temperature: float = 1.0):
        super().__init__(weight, bias, temperature=_temperature(temperature))

    def rate(self, features, logits):
        return (logits / self.options["temperature"]).softmax(1).amax(1)


class MaxLogit(Score):
    """The largest logit. Source: arXiv 1911.11132."""

    passes = 0

    def rate(self, features, logits):
        return logits.amax(1)


class Energy(Score):
    """temperature * logsumexp(l / temperature), the negative energy. Source: arXiv 2010.03759."""

    passes = 0

    def __init__(self, weight: Tensor, bias: Tensor | None = None, temperature: float = 1.0):
        super().__init__(weight, bias, temperature=_temperature(temperature))

    def rate(self, features, logits):
        temperature = self.options["temperature"]
        return temperature * (logits / temperature).logsumexp(1)


# --- fitted ----------------------------------------------------------------------------------------------------------


class NearestMean(Score):
    """The negative distance to the nearest mean of a class, of the features that the classifier got right. A class
    without such a sample has no mean, and is near to nothing.

    Args:
        weight, bias: as of `Score`.
        distance: 'euclidean', or 'cosine', which is 1 - cosine.
    """

    STATE: ClassVar = {"means": ("C", "D"), "counts": ("C",)}
    means: Tensor
    counts: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None, distance: str = "euclidean"):
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance is {distance!r}; it may be 'euclidean' or 'cosine'.")
        super().__init__(weight, bias, distance=distance)

    def begin(self):
        self.moments = ClassMoments(*self.weight.shape, self.weight)

    def collect(self, features, logits, labels, right):
        self.moments.add(features[right], labels[right])

    def close(self, number):
        if not self.moments.counts.any():
            raise ValueError("the classifier gets no sample of the fitting data right: nothing can be fitted.")
        self.means, self.counts = self.moments.means.to(self.dtype), self.moments.counts.to(self.dtype)

    def rate(self, features, logits):
        means = self.means[self.counts > 0]
        if self.options["distance"] == "cosine":
            return (F.normalize(features, dim=1) @ F.normalize(means, dim=1).T).amax(1) - 1
        return -torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


class NNGuide(Score):
    """Energy times guidance, the mean over the `neighbors` nearest samples of a bank of cosine times their energy.
    The bank is drawn from the fitting data, right and wrong, each sample with the same chance, in a stream.

    This is like nearest neighbor guidance (Park et al., ICCV 2023, arXiv 2309.14888; roomo7time/nnguide), whose bank is
    a share of the training set.

    Args:
        weight, bias: as of `Score`.
        neighbors: number of nearest samples.
        bank: most samples of the bank, each of which costs D numbers, and B D multiply-adds at the test.
        seed: seed of the draw (>= 0).
    """

    STATE: ClassVar = {"samples": ("N", "D")}
    samples: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, neighbors: int = 10, bank: int = 10_000, seed: int = 0
    ):
        for name, value, least in (("neighbors", neighbors, 1), ("bank", bank, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if neighbors > bank:
            raise ValueError(f"neighbors must be at most bank={bank}, got {neighbors}.")
        super().__init__(weight, bias, neighbors=neighbors, bank=bank, seed=seed)

    def begin(self):
        self.generator = torch.Generator().manual_seed(self.options["seed"])
        self.keys = torch.empty(0, dtype=torch.float64)
        self.kept = self.weight.new_empty(0, self.weight.shape[1])

    def collect(self, features, logits, labels, right):
        # The samples with the smallest of random keys are a uniform draw, whatever the batches
        keys = torch.rand(len(features), dtype=torch.float64, generator=self.generator)
        self.keys = torch.cat([self.keys, keys])
        self.kept = torch.cat([self.kept, F.normalize(features, dim=1) * logits.logsumexp(1, keepdim=True)])
        if len(self.keys) > self.options["bank"]:
            self.keys, chosen = self.keys.topk(self.options["bank"], largest=False)
            self.kept = self.kept[chosen.to(self.kept.device)]

    def close(self, number):
        if len(self.kept) < self.options["neighbors"]:
            raise ValueError(
                f"neighbors={self.options['neighbors']}, and the fitting data have {len(self.kept)} samples."
            )
        self.samples, self.kept = self.kept, self.kept[:0]

    def rate(self, features, logits):
        near = (F.normalize(features, dim=1) @ self.samples.T).topk(self.options["neighbors"], dim=1).values
        return near.mean(1) * logits.logsumexp(1)


def fit_pareto(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Location, scale and shape of a generalised Pareto distribution of values (N,), N >= 2.

    The location is the smallest value. Scale and shape are the estimates of Zhang and Stephens (Technometrics 2009),
    which have a closed form. Equal values give the scale 0, a step.
    """
    location = values.min()
    x = (values - location).double().sort().values
    count, most = len(x), x[-1]
    if most <= 0:
        return location, torch.zeros_like(location), torch.zeros_like(location)
    grid = 30 + int(count**0.5)
    quarter = x[int(count / 4 + 0.5) - 1].clamp(min=1e-6 * most)
    steps = 1 - (grid / (torch.arange(1, grid + 1, dtype=x.dtype, device=x.device) - 0.5)).sqrt()
    theta = 1 / most + steps / (3 * quarter)
    shapes = torch.log1p(-theta[:, None] * x).mean(1)
    likelihood = count * (torch.log(-theta / shapes) - shapes - 1)
    mean = (theta * likelihood.nan_to_num(nan=-torch.inf).softmax(0)).sum()
    shape = torch.log1p(-mean * x).mean()
    return location, (-shape / mean).to(values), shape.to(values)


def pareto_cdf(values: Tensor, location: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
    """The distribution function 1 - (1 + shape (value - location) / scale)^(-1 / shape); 0 below the location."""
    y = (values - location).clamp(min=0) / scale.clamp(min=1e-300)
    power = torch.where(shape.abs() < 1e-9, -y, -torch.log1p((shape * y).clamp(min=-1)) / shape)
    return torch.where(scale > 0, -torch.expm1(power), (values >= location).to(values))


class Ghost(Score):
    """Largest logit / sum over the features of |f - mean| / deviation, by the mean and the deviation of each feature in
    the predicted class; features that never change there do not count. Then, by `tail`, the distribution function of
    that ratio among the right samples of the class, in [0, 1].

    As Vastlab/GHOST (commit 2e9466a) does, whose generalised Pareto distribution is fitted by SciPy; ours is that of
    `fit_pareto`. What is below all right samples of the class has the probability 0. Source: arXiv 2502.03359.

    Args:
        weight, bias: as of `Score`.
        tail: 'pareto', or 'none' for the ratio itself, which needs one pass instead of two.
    """

    STATE: ClassVar = {"means": ("C", "D"), "deviations": ("C", "D"), "tails": ("C", "3")}
    UNBOUNDED: ClassVar = frozenset({"deviations"})
    means: Tensor
    deviations: Tensor
    tails: Tensor  # (C, 3): location, scale, shape

    def __init__(self, weight: Tensor, bias: Tensor | None = None, tail: str = "pareto"):
        if tail not in ("pareto", "none"):
            raise ValueError(f"tail is {tail!r}; it may be 'pareto' or 'none'.")
        self.passes = 2 if tail == "pareto" else 1
        super().__init__(weight, bias, tail=tail)

    def begin(self):
        self.moments = ClassMoments(*self.weight.shape, self.weight)
        self.ratios: list[tuple[Tensor, Tensor]] = []

    def collect(self, features, logits, labels, right):
        if self.number == 0:
            self.moments.add(features[right], labels[right])
        else:
            self.ratios.append((self._ratio(features[right], logits[right]), labels[right]))

    def close(self, number):
        if number == 0:
            counts, means = self.moments.counts, self.moments.means
            if few := (counts < 2).nonzero()[:, 0].tolist():
                raise ValueError(
                    f"GHOST takes deviations from at least two right samples of each class, and class {few[0]} has "
                    f"{int(counts[few[0]])}."
                )
            variances = self.moments.squares / (counts[:, None] - 1)
            same = variances <= 1e-20 * means.square()  # rounding alone
            if still := same.all(1).nonzero()[:, 0].tolist():
                raise ValueError(f"no feature changes among the right samples of class {still[0]}.")
            deviations = torch.where(same, torch.inf, variances.sqrt())
            self.means, self.deviations = means.to(self.dtype), deviations.to(self.dtype)
            self.tails = self.means.new_zeros(len(counts), 3)
        else:
            ratios, labels = (torch.cat(column) for column in zip(*self.ratios))
            self.ratios = []
            for label in range(len(self.weight)):
                self.tails[label] = torch.stack(fit_pareto(ratios[labels == label]))

    def _ratio(self, features: Tensor, logits: Tensor) -> Tensor:
        top, classes = logits.max(1)
        far = ((features - self.means[classes]) / self.deviations[classes]).abs().sum(1)
        return top / far.clamp(min=1e-12)

    def rate(self, features, logits):
        ratios = self._ratio(features, logits)
        if self.options["tail"] == "none":
            return ratios
        location, scale, shape = (column.double() for column in self.tails[logits.argmax(1)].unbind(1))
        return pareto_cdf(ratios.double(), location, scale, shape).to(ratios)
