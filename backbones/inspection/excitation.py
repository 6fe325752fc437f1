"""Excitation backpropagation: the probability that a place wins, passed from an answer down to a layer.

"Top-Down Neural Attention by Excitation Backprop", IJCV 2018, arXiv 1608.00507. Activations are at least 0. A unit j
that wins passes its probability on to its parents i by what excites it:

    P(i | j) = a_i w⁺_ij / Σ_k a_k w⁺_kj;    P(i) = Σ_j P(i | j) P(j)

The contrast subtracts the map of the dual answer, whose last layer has the negated weights: what speaks for the class,
and not for the others. Its map is the positive part of the difference.

The rule is for convolutions and linear layers, sums, averages, and batch norms (one that follows a convolution is part
of its weights). Maxima pass a probability to the winner, max(x, 0) as it is. A network that does anything else with its
activations, such as attention, layer norms, gates or GELU, has no such probabilities: it is refused, by the name of the
operation. The rule is given to autograd while the network runs; nothing in the network is replaced.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from .capture import Inputs, look
from .targets import Scoring, ToMap

LINEAR = (F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
SUMS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)
MEANS = (
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(torch.mean, Tensor.mean, torch.sum, Tensor.sum),
)
RELUS = (F.relu, torch.relu, Tensor.relu, F.relu6)
# they move numbers, or choose the largest, and autograd's own gradient is the rule
PASSED = frozenset(
    name
    for names in (
        "adaptive_max_pool2d adaptive_max_pool1d max_pool1d max_pool2d max_pool3d boolean_dispatch amax max",
        "flatten view reshape view_as permute transpose contiguous squeeze unsqueeze cat stack expand clone",
        "to type float double chunk split unflatten __getitem__ narrow select unbind movedim detach dropout",
        "dropout2d pad channel_shuffle pixel_shuffle mT T swapaxes repeat index_select gather __get__",
    )
    for name in names.split()
)


class _Rule(torch.autograd.Function):
    """A function of at least one input whose backward is the rule of `excites`, the same function with positive weights
    alone, of inputs of at least 0."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, excites: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.excites = excites
        ctx.save_for_backward(*inputs)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, probability: Tensor):
        with torch.enable_grad(), torch._C.DisableTorchFunction():  # autograd runs inside of the mode
            parents = [x.detach().clamp(min=0).requires_grad_() for x in ctx.saved_tensors]
            total = ctx.excites(*parents)
            share = torch.where(total > 0, probability / total.clamp(min=torch.finfo(total.dtype).tiny), 0)
            slopes = torch.autograd.grad(total, parents, share)
        return None, None, *(x.detach() * slope for x, slope in zip(parents, slopes))


class Excitation(TorchFunctionMode):
    """Everything that runs inside has the rule as its gradient.

    Args:
        dual: number of the linear layer, in the order in which they run, whose weights are negated; None for none.

    Attributes:
        count: number of linear layers that have run.
    """

    def __init__(self, dual: int | None = None):
        super().__init__()
        self.dual, self.count = dual, 0
        self.last: tuple | None = None  # output, function and arguments of the last convolution

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in [*args, *kwargs.values()] if isinstance(x, Tensor)]
        if not any(x.requires_grad for x in tensors):
            return function(*args, **kwargs)
        if function in LINEAR:
            return self._linear(function, *args, **kwargs)
        if function is F.batch_norm:
            return self._norm(*args, **kwargs)
        if function in SUMS:
            return self._sum(*args, **kwargs)
        if function in MEANS:
            x, *others = args
            value = function(x.detach(), *others, **kwargs)
            return _Rule.apply(value, lambda a: function(a, *others, **kwargs), x)
        if function in RELUS:
            return _Rule.apply(function(args[0].detach().clone()), lambda a: a, args[0])
        name = getattr(function, "__name__", "")
        found = function(*args, **kwargs)
        gives = found if isinstance(found, (tuple, list)) else (found,)
        if name not in PASSED and any(isinstance(x, Tensor) and x.requires_grad for x in gives):
            raise ValueError(
                f"excitation backpropagation has no rule for {resolve_name(function) or name}: it is for networks of "
                "convolutions, linear layers, sums, averages, maxima, batch norms and ReLU; take another method"
            )
        return found

    def _linear(self, function, x: Tensor, weight: Tensor, bias: Tensor | None = None, *others, **kwargs) -> Tensor:
        sign = -1 if self.count == self.dual else 1
        self.count += 1
        value = function(x.detach(), weight, bias, *others, **kwargs)

        def excites(scale: Tensor | None = None) -> Callable[[Tensor], Tensor]:
            scales = 1 if scale is None else scale.view(-1, *[1] * (weight.ndim - 1))
            positive = (sign * weight.detach() * scales).clamp(min=0)
            return lambda a: function(a, positive, None, *others, **kwargs)

        found = _Rule.apply(value, excites(), x)
        self.last = (found, excites, x)
        return found

    def _norm(self, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> Tensor:
        value = F.batch_norm(x.detach(), mean, var, weight, bias, training, momentum, eps)
        scale = torch.rsqrt(var + eps) * (1 if weight is None else weight)
        if self.last is not None and self.last[0] is x:  # one layer with the convolution before
            _, excites, parent = self.last
            return _Rule.apply(value, excites(scale), parent)
        positive = scale.clamp(min=0).view(-1, *[1] * (x.ndim - 2))
        return _Rule.apply(value, lambda a: a * positive, x)

    def _sum(self, first, second, alpha=1) -> Tensor:
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)) or alpha != 1:
            raise ValueError("excitation backpropagation has no rule for the sum of an activation and a number")
        value = first.detach() + second.detach()
        return _Rule.apply(value, lambda a, b: a + b, first, second)


def contrastive_excitation(
    network: nn.Module,
    inputs: Inputs,
    score: Scoring,
    layers: str | Sequence[str],
    grid: ToMap | None = None,
    contrast: bool = True,
) -> list[Tensor]:
    """The probabilities of the places of layers, less those of the dual answer where that is less: two passes.

    Args:
        network, inputs, score, layers, grid: as of `capture.look`. The probability starts at what the score weighs: of
            `logit(c)` all of it at the class.
        contrast: whether the map of the dual answer is subtracted. The dual has negated weights in the linear layer
            that runs last. Without contrast the map of a sample has the sum 1, as far as every winner is excited by
            something.

    Returns:
        A map (B, h, w) for each layer, at least 0.

    Raises:
        ValueError: the network has an operation without a rule; names it.
    """

    with Excitation() as mode:
        won = look(network, inputs, score, layers, grid)
    if not contrast:
        return [seen.gradient.sum(1) for seen in won]
    with Excitation(mode.count - 1):
        lost = look(network, inputs, score, layers, grid)
    return [(a.gradient - b.gradient).sum(1).clamp(min=0) for a, b in zip(won, lost)]
