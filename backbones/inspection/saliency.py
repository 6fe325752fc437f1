"""Methods of explanation by name, what makes any of them more sensitive to the class, and what tests them.

    method(network, inputs, score, layers, grid=None) -> a map (B, h, w) for each layer

is the form of all of them; what the arguments are, `capture.look` says.

- NormGrad and its kind: see `normgrad`. The gradient is the largest size of it over the channels.
- Grad-CAM (arXiv 1610.02391): max(Σ_c a_c mean(g_c), 0), where the mean is over all places. It averages before it
  looks at a place, so it is no sum of contributions; it is that of the linear approximation, but for the maximum, where
  g is the same everywhere, as in the layer before a global average.
- Contrastive excitation backpropagation: see `excitation`.
- Layer-wise relevance propagation ("lrp"), with plain rules: see `relevance`; signed. Salient Relevance ("salient"),
  of the input alone: see `salient_relevance`.
- Meta-saliency (arXiv 2004.02866): the map of the network after one step of gradient descent on the loss of its target.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .capture import INPUT, Inputs, as_inputs, check_mode, look, swapped, unchanged
from .excitation import contrastive_excitation
from .normgrad import linear_approximation, normgrad, proper_normgrad, selective_normgrad
from .relevance import propagate
from .salient_relevance import salient_relevance
from .targets import Scoring, ToMap, evaluate, extreme_classes, logit, of_sample


class Method(Protocol):
    def __call__(
        self, network: nn.Module, inputs: Inputs, score: Scoring, layers: str | Sequence[str], grid: ToMap | None = None
    ) -> list[Tensor]: ...


def gradient(
    network: nn.Module, inputs: Inputs, score: Scoring, layers: str | Sequence[str], grid: ToMap | None = None
) -> list[Tensor]:
    """The largest size of the gradient over channels."""
    return [seen.gradient.abs().amax(1) for seen in look(network, inputs, score, layers, grid)]


def gradcam(
    network: nn.Module, inputs: Inputs, score: Scoring, layers: str | Sequence[str], grid: ToMap | None = None
) -> list[Tensor]:
    """Grad-CAM, see above. Prefix tokens are in no mean."""
    found = []
    for seen in look(network, inputs, score, layers, grid):
        weights = seen.gradient.flatten(2).mean(2).view(*seen.gradient.shape[:2], *[1] * (seen.gradient.ndim - 2))
        found.append((seen.activation * weights).sum(1).clamp(min=0))
    return found


def lrp(
    network: nn.Module, inputs: Inputs, score: Scoring, layers: str | Sequence[str], grid: ToMap | None = None
) -> list[Tensor]:
    """The relevance of the layer "input", or of the maps that modules give, summed over channels."""
    if grid is not None:
        raise ValueError("lrp takes no grid: it shows the input, or modules that give maps")
    names = [layers] if isinstance(layers, str) else list(layers)
    modules = [name for name in names if name != INPUT]
    found = propagate(network, as_inputs(inputs), score, layers=modules, at_inputs=INPUT in names)
    parts: dict[str, Sequence[Tensor | None]] = {**found.layers, INPUT: found.inputs[:1]}
    maps = []
    for name in names:
        first, *others = parts[name]
        if others or first is None or first.ndim < 3:
            given = f"{len(parts[name])} times" if others else "no maps (B, C, *places)"
            raise ValueError(f"{name} gives {given}; lrp shows what modules give that run once and give maps")
        maps.append(first.sum(1))
    return maps


def salient(
    network: nn.Module, inputs: Inputs, score: Scoring, layers: str | Sequence[str], grid: ToMap | None = None
) -> list[Tensor]:
    """Salient Relevance, of the layer "input" alone."""
    if grid is not None or ([layers] != [INPUT] and list(layers) != [INPUT]):
        raise ValueError(f"salient takes layers={INPUT!r} alone, and no grid; got layers={layers!r}")
    return [salient_relevance(network, as_inputs(inputs), score).map]


METHODS: dict[str, Any] = dict(
    normgrad=normgrad,
    selective=selective_normgrad,
    proper=proper_normgrad,
    linear=linear_approximation,
    gradient=gradient,
    gradcam=gradcam,
    excitation=contrastive_excitation,
    lrp=lrp,
    salient=salient,
)

# --- more sensitive to the class -------------------------------------------------------------------------------------


def meta_saliency(
    method: Method,
    network: nn.Module,
    inputs: Inputs,
    score: Scoring,
    layers: str | Sequence[str],
    loss: Scoring,
    rate: float = 1e-4,
    negate: bool = False,
    grid: ToMap | None = None,
) -> list[Tensor]:
    """The maps of a method after one step of gradient descent, without momentum, on all parameters.

    Each sample has a step of its own, so that a batch gives what its samples give one by one. (One step on the mean
    loss of a batch, as the authors' code would take it, mixes them; of one sample it is the same.) The step is made on
    copies: the network's own parameters are never written to, also if something fails. It costs one pass forward and
    backward more, and the memory of the parameters twice.

    Args:
        method: one of METHODS, or any function of this form.
        network, inputs, score, layers, grid: as of `capture.look`.
        loss: what the step lowers, output -> (B,); `targets.cross_entropy(classes)` in the paper.
        rate: of the step. The authors' default; their experiments have 1e-2 to 1e-4.
        negate: whether the step raises the loss.

    Returns:
        A map (B, h, w) for each layer.
    """
    given = as_inputs(inputs)
    check_mode(network)
    parts: list[list[Tensor]] = []
    with unchanged(network):
        for i in range(len(given[0])):
            sample = tuple(x[i : i + 1] if isinstance(x, Tensor) else x for x in given)
            steps = _descent(network, sample, of_sample(loss, i), -rate if negate else rate)
            with swapped(network, lambda name, parameter: steps[name]):  # noqa: B023
                parts.append(method(network, sample, of_sample(score, i), layers, grid=grid))
    return [torch.cat(maps) for maps in zip(*parts)]


@torch.inference_mode(False)
def _descent(network: nn.Module, sample: tuple[Tensor, ...], loss: Scoring, rate: float) -> dict[str, Tensor]:
    """The parameters after a step, by name; those that the loss does not depend on as they are."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, parameter: nn.Parameter) -> Tensor:
        leaves[name] = parameter.detach().requires_grad_(parameter.is_floating_point())
        return leaves[name]

    with torch.enable_grad(), swapped(network, leaf, detach=False):
        value = evaluate(loss, network(*sample), len(sample[0]))
        if not value.requires_grad:
            raise ValueError("the loss depends on no parameter of the network")
        learned = [name for name, part in leaves.items() if part.requires_grad]
        slopes = torch.autograd.grad(value.sum(), [leaves[name] for name in learned], allow_unused=True)
    moves = {name: slope for name, slope in zip(learned, slopes) if slope is not None}
    return {n: part.detach() - rate * moves[n] if n in moves else part.detach() for n, part in leaves.items()}


# --- what tests a method ---------------------------------------------------------------------------------------------


def rank_correlation(first: Tensor, second: Tensor, offset: float = 1e-6) -> Tensor:
    """Spearman's correlation of maps (B, ...), image by image: that of their ranks, equal values having the mean of
    theirs. (B,), float64; NaN where all values of a map are equal.

    Args:
        offset: number that is added to the maps before they are ranked, as TorchRay does: values much smaller than it
            become equal.
    """
    if first.shape != second.shape:
        raise ValueError(f"maps must be of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    ranks = []
    for maps in (first, second):
        rows = []
        for row in (maps + offset).flatten(1):
            _, inverse, counts = row.unique(return_inverse=True, return_counts=True)
            ends = counts.cumsum(0).double()
            rows.append((ends - (counts.double() - 1) / 2)[inverse])
        ranks.append(torch.stack(rows))
    a, b = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def class_sensitivity(
    method: Method,
    network: nn.Module,
    inputs: Inputs,
    layers: str | Sequence[str],
    classes: tuple[Tensor, Tensor] | None = None,
    grid: ToMap | None = None,
) -> Tensor:
    """How alike the maps of two classes of an image are: their `rank_correlation`, (layers, B). The lower, the more
    the method looks at the class; one that shows edges alone has 1.

    The abstract says that the most and the least probable class are compared; the rest of the protocol was not
    released, and is ours.

    Args:
        method, network, inputs, layers, grid: as of `meta_saliency`; the network gives logits (B, num_classes).
        classes: the two classes (B,) of each image, instead of the most and the least probable.
    """
    if classes is None:
        check_mode(network)
        with torch.no_grad():
            classes = extreme_classes(network(*as_inputs(inputs)))
    first, second = (method(network, inputs, logit(chosen), layers, grid=grid) for chosen in classes)
    return torch.stack([rank_correlation(a, b) for a, b in zip(first, second)])


@contextmanager
def randomized(network: nn.Module, seed: int = 0, parts: Sequence[str] = ("",)) -> Iterator[None]:
    """Run a network whose parameters, or those below the modules `parts`, each have their values in random order: an
    untrained network of the same scales. The network's own come back untouched."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(name: str, parameter: nn.Parameter) -> Tensor:
        if not any(name.startswith(f"{part}.".lstrip(".")) for part in parts):
            return parameter.detach()
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        return parameter.detach().flatten()[order].view_as(parameter)

    with swapped(network, shuffled):
        yield


def sanity_check(
    method: Method,
    network: nn.Module,
    inputs: Inputs,
    score: Scoring,
    layers: str | Sequence[str],
    seed: int = 0,
    parts: Sequence[str] = ("",),
    grid: ToMap | None = None,
) -> Tensor:
    """How alike the maps are before and after the weights are randomized: their `rank_correlation`, (layers, B). A
    method that explains what was learned is far from 1 ("Sanity Checks for Saliency Maps", arXiv 1810.03292).

    Args:
        method, network, inputs, score, layers, grid: as of `meta_saliency`.
        seed, parts: as of `randomized`; the head and then more parts, one after the other, is the cascade of the paper.
    """
    before = method(network, inputs, score, layers, grid=grid)
    with unchanged(network), randomized(network, seed, parts):
        after = method(network, inputs, score, layers, grid=grid)
    return torch.stack([rank_correlation(a, b) for a, b in zip(before, after)])


def of_method(name: str) -> Method:
    """A method by name.

    Raises:
        ValueError: there is none; names all.
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r} is none of {', '.join(METHODS)}")
    return METHODS[name]


def with_meta(method: Method, loss: Scoring, rate: float = 1e-4, negate: bool = False) -> Method:
    """A method behind a step of `meta_saliency`, as a method."""

    def meta(network, inputs, score, layers, grid=None):
        return meta_saliency(method, network, inputs, score, layers, loss, rate, negate, grid)

    return meta
