"""NormGrad: which places contribute to the gradient of the weights of a layer; and all maps of its kind.

"There and Back Again: Revisiting Backpropagation Saliency Methods", CVPR 2020, arXiv 2004.02866; the formulas are of
srebuffi/revisiting_saliency and ruthcfong/TorchRay (branch normgrad). Let a be what a layer gives and g the gradient of
a score there, both (B, C, H, W). An identity behind the layer would have a gradient of its weights that is a sum over
places u. A map is made in two steps: what u adds to that sum, a vector, and one number of the vector.

    bias               g_u                          C values
    scaling            a_u ∘ g_u                    C
    conv1x1            a_u g_uᵀ                     C · C
    conv3x3            patch(a)_u g_uᵀ              9 C · C, patch: 3 x 3 around u, zeros beyond the border
    conv3x3_depthwise  patch(a)_u g_u, by channel   9 C

    sum,   norm = ‖v‖,   filter_norm = ‖max(v, 0)‖,   max

NormGrad is conv1x1 with norm, ‖a_u‖ ‖g_u‖; selective NormGrad scaling with filter_norm; the linear approximation, or
gradient x activation, scaling with sum. The outer products are never built. With sums over channels Σ, positive and
negative parts +, -, and windows of a summed up by a box filter:

    sum          Σa Σg
    norm         √Σa² √Σg²
    filter_norm  √(Σa₊² Σg₊² + Σa₋² Σg₋²)
    max          the largest of max a max g, max a min g, min a max g, min a min g

so that all twenty maps cost O(C) operations and memory for each place (9 C for the depth-wise ones).

The signs are those of the definition: the authors' script differentiates minus the logit and takes minus the product.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import one_of
from .capture import Inputs, look
from .targets import Scoring, ToMap

EXTRACTIONS = ("bias", "scaling", "conv1x1", "conv3x3", "conv3x3_depthwise")
AGGREGATIONS = ("sum", "filter_norm", "norm", "max")

# --- the two steps ---------------------------------------------------------------------------------------------------


def contributions(
    activation: Tensor, gradient: Tensor, extraction: str = "conv1x1", aggregation: str = "norm"
) -> Tensor:
    """The map of a layer.

    Args:
        activation, gradient: a and g, (B, C, *places); of two dimensions of places for the 3 x 3 extractions. Numbers
            of half precision are taken in float32.
        extraction: one of EXTRACTIONS, see above.
        aggregation: one of AGGREGATIONS.

    Returns:
        (B, *places); not scaled.
    """
    one_of("extraction", extraction, EXTRACTIONS)
    one_of("aggregation", aggregation, AGGREGATIONS)
    if activation.shape != gradient.shape or activation.ndim < 3:
        raise ValueError(
            "activation and gradient must both be (B, C, *places), got "
            f"{tuple(activation.shape)} and {tuple(gradient.shape)}"
        )
    if "3x3" in extraction and activation.ndim != 4:
        raise ValueError(f"extraction={extraction!r} takes maps (B, C, H, W), got {tuple(activation.shape)}")
    wide = torch.promote_types(activation.dtype, torch.float32)
    a, g = activation.to(wide), gradient.to(wide)
    if extraction == "bias":
        return _aggregated(g, aggregation)
    if extraction == "scaling":
        return _aggregated(a * g, aggregation)
    if extraction == "conv3x3_depthwise":
        return _depthwise(a, g, aggregation)
    return _outer(a, g, aggregation, 1 if extraction == "conv1x1" else 3)


def _aggregated(v: Tensor, aggregation: str) -> Tensor:
    if aggregation == "sum":
        return v.sum(1)
    if aggregation == "max":
        return v.amax(1)
    return (v.clamp(min=0) if aggregation == "filter_norm" else v).norm(dim=1)


def _depthwise(a: Tensor, g: Tensor, aggregation: str) -> Tensor:
    """Shift by shift: the nine products do not stand in memory together."""
    height, width = a.shape[2:]
    padded = F.pad(a, (1, 1, 1, 1))
    found: Any = None
    for row in range(3):
        for column in range(3):
            part = _aggregated(padded[:, :, row : row + height, column : column + width] * g, aggregation)
            if aggregation == "max":
                found = part if found is None else torch.maximum(found, part)
            else:
                part = part if aggregation == "sum" else part.square()
                found = part if found is None else found + part
    return found if aggregation in ("sum", "max") else found.sqrt()


def _outer(a: Tensor, g: Tensor, aggregation: str, side: int) -> Tensor:
    """The norm, sum or maximum of the outer product of windows of a, side x side, and g, by its closed form."""

    def box(x: Tensor) -> Tensor:  # sums over windows
        return x if side == 1 else F.avg_pool2d(x[:, None], side, 1, side // 2, divisor_override=1)[:, 0]

    def top(x: Tensor) -> Tensor:  # largest of windows, with the zeros beyond the border
        return x if side == 1 else F.max_pool2d(F.pad(x, (side // 2,) * 4)[:, None], side, 1)[:, 0]

    if aggregation == "sum":
        return box(a.sum(1)) * g.sum(1)
    if aggregation == "norm":
        return box(a.square().sum(1)).sqrt() * g.norm(dim=1)
    if aggregation == "filter_norm":
        signs = [(box((s * a).clamp(min=0).square().sum(1)), (s * g).clamp(min=0).square().sum(1)) for s in (1, -1)]
        return sum(of_a * of_g for of_a, of_g in signs).sqrt()  # type: ignore[union-attr]
    ends = [(sa * top((sa * a).amax(1))) * (sg * (sg * g).amax(1)) for sa in (1, -1) for sg in (1, -1)]
    return torch.stack(ends).amax(0)


# --- methods ---------------------------------------------------------------------------------------------------------


def normgrad(
    network: nn.Module,
    inputs: Inputs,
    score: Scoring,
    layers: str | Sequence[str],
    extraction: str = "conv1x1",
    aggregation: str = "norm",
    grid: ToMap | None = None,
) -> list[Tensor]:
    """The maps of any number of layers, of one pass forward and one backward.

    Args:
        network, inputs, score, layers, grid: as of `capture.look`.
        extraction, aggregation: as of `contributions`; by default NormGrad's.

    Returns:
        A map (B, h, w) for each layer, at its resolution, not scaled; see `resized`, `scaled` and `combined`.
    """
    one_of("extraction", extraction, EXTRACTIONS)
    one_of("aggregation", aggregation, AGGREGATIONS)
    seen = look(network, inputs, score, layers, grid)
    return [contributions(part.activation, part.gradient, extraction, aggregation) for part in seen]


def selective_normgrad(
    network: nn.Module, inputs: Inputs, score: Scoring, layers: str | Sequence[str], grid: ToMap | None = None
) -> list[Tensor]:
    """`normgrad` of scaling and filter_norm: where activation and gradient agree."""
    return normgrad(network, inputs, score, layers, "scaling", "filter_norm", grid)


def linear_approximation(
    network: nn.Module, inputs: Inputs, score: Scoring, layers: str | Sequence[str], grid: ToMap | None = None
) -> list[Tensor]:
    """`normgrad` of scaling and sum: gradient x activation, and of the layer "input" gradient x input; signed."""
    return normgrad(network, inputs, score, layers, "scaling", "sum", grid)


def proper_normgrad(
    network: nn.Module, inputs: Inputs, score: Scoring, layers: str | Sequence[str], grid: ToMap | None = None
) -> list[Tensor]:
    """NormGrad of real convolutions, without an identity behind them: ‖patch(x)_u‖ ‖g_u‖, where x is what the
    convolution reads, its patches are those of its kernel, stride, dilation and padding, and g is the gradient where it
    writes. Of groups of channels, the norms of the groups are added in squares.

    Args:
        network, inputs, score: as of `capture.look`.
        layers: names of convolutions of maps (nn.Conv2d).
        grid: None: convolutions give maps.

    Returns:
        A map (B, h, w) for each, at the resolution that the convolution writes.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    modules = dict(network.named_modules())
    for layer in names:
        module = modules.get(layer.partition("#")[0])
        if module is not None and type(module) is not nn.Conv2d:
            raise ValueError(f"{layer} is a {type(module).__name__}; proper NormGrad takes convolutions (nn.Conv2d)")
    if grid is not None:
        raise ValueError("proper NormGrad takes no grid: its layers are convolutions, which give maps")
    seen = look(network, inputs, score, names, entering=True)
    return [_proper(modules[s.layer.partition("#")[0]], s.entering, s.gradient) for s in seen]  # type: ignore[arg-type]


def _proper(conv: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    squares = x.to(wide).square().unflatten(1, (conv.groups, -1)).sum(2)  # (B, groups, H, W)
    padding: Any = conv.padding
    if conv.padding_mode != "zeros":
        squares = F.pad(squares, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        padding = 0
    ones = squares.new_ones(conv.groups, 1, *conv.kernel_size)
    sums = F.conv2d(squares, ones, None, conv.stride, padding, conv.dilation, conv.groups)
    of_g = g.to(wide).square().unflatten(1, (conv.groups, -1)).sum(2)
    return (sums.clamp(min=0) * of_g).sum(1).sqrt()


# --- maps of several layers ------------------------------------------------------------------------------------------


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, h, w) at height and width `size`, bilinear, without aligned corners."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def scaled(maps: Tensor) -> Tensor:
    """Maps (B, ...), each from 0, its least value, to 1, its largest; zeros where all values are equal."""
    flat = maps.flatten(1)
    least = flat.amin(1, keepdim=True)
    span = flat.amax(1, keepdim=True) - least
    return torch.where(span > 0, (flat - least) / span.clamp(min=torch.finfo(flat.dtype).tiny), 0).view(maps.shape)


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps (B, h, w) under a Gaussian of `sigma` pixels, cut at 4 sigma; beyond the borders the last values go on."""
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma is {sigma!r}; it must be a positive number of pixels")
    reach = math.ceil(4 * sigma)
    place = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    taps = torch.exp(-place.square() / (2 * sigma**2))
    taps = taps / taps.sum()
    x = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[:, 0]


def combined(
    maps: Sequence[Tensor], size: Sequence[int], how: str = "product", weights: str | Sequence[float] | None = None
) -> Tensor:
    """One map of those of several layers, each resized and then scaled, image by image.

    Args:
        maps: (B, h, w) each, from the first to the last layer.
        size: height and width of the map.
        how: "product" Π s_l^w_l, or "sum" Σ w_l s_l.
        weights: None for weights of 1, as in the authors' script; else weights whose sum is made 1: "uniform", "linear"
            (they grow from the first to the last layer), or a number of at least 0 for each layer.

    Returns:
        (B, *size), at least 0; at most 1 where the sum of the weights is 1, and of products.
    """
    one_of("how", how, ("product", "sum"))
    count = len(maps)
    if not count:
        raise ValueError("maps must be those of one layer at least, got none")
    if weights is None:
        shares = [1.0] * count
    else:
        if isinstance(weights, str):
            one_of("weights", weights, ("uniform", "linear"))
            given = [1.0] * count if weights == "uniform" else [(i + 1) / count for i in range(count)]
        else:
            given = [float(weight) for weight in weights]
        if len(given) != count or not all(0 <= w < math.inf for w in given) or not sum(given) > 0:
            raise ValueError(f"weights must be {count} numbers of at least 0, not all 0, got {given}")
        shares = [weight / sum(given) for weight in given]
    parts = (scaled(resized(x, size)) for x in maps)
    found: Any = None
    for share, part in zip(shares, parts):
        part = part**share if how == "product" else share * part
        found = part if found is None else found * part if how == "product" else found + part
    return found
