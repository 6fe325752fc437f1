"""What tools/benchmark measures of images: attentions and aggregations of maps, and the relation of boxes.

As for clouds (tools/benchmark/cases.py), all implementations of an operator get the same tensors: ours, "reference",
"naive" (windows unfolded or gathered, sines and weights of all pairs written out, in the manner of the releases), and
for neighborhood attention "masked sdpa", PyTorch's dense attention with a mask, which is made beforehand. Maps are
square and channels-last in memory.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attlas.backbones.tcpa import coordinated_attention
from attlas.kernels import (
    bridging_attention,
    carafe,
    combiner_fixed,
    combiner_logsparse,
    combiner_mixture,
    combiner_rowmajor,
    deformable_attention,
    deformable_convolution,
    halo_attention,
    lightning_attention,
    local_cross_attention,
    neighborhood_aggregate,
    neighborhood_attention,
    nprf_attention,
    outlook_attention,
    position_relation,
    psa_mask,
    reversed_attention,
    roi_align,
    roi_pool,
    routed_attention,
    small_kernel_aggregate,
    sparse_attention,
    window_attention,
)
from attlas.kernels.lightning_attention import alibi_slopes

from . import naive
from .cases import OURS, Case, Run, differentiable, random

Functions = dict[str, Callable[..., Tensor]]
Shapes = dict[str, tuple[int, ...]]
LEVELS = 4  # of deformable attention, each half as high and wide as the one before


@dataclass
class Operator:
    """An operator and its sizes, which its functions take as keywords.

    Args:
        shapes: of its differentiable inputs by name; the output has the shape of the last map, "v" or "x", unless
            `growth` is given.
        functions: implementations, of these inputs.
        taps: how many pixels each pixel reads.
        products: how many products with all taps the forward has: q·k and weight·v, or only the latter.
        sizes: of the cases; batches of 8 where the naive form takes less than a second on one core.
        growth: how many numbers of the output there are for one of x.
        referred: whether there is a PyTorch reference beside ours, as every operator of `attlas.kernels` has one.
    """

    shapes: Callable[..., Shapes]
    functions: Callable[..., Functions]
    taps: Callable[..., int]
    products: int
    sizes: list[dict[str, int]]
    growth: Callable[..., float] = lambda **_: 1
    referred: bool = True

    def needs(self, mode: str, sizes: dict[str, int]) -> tuple[float, float]:
        """Bytes and operations of the lower bound: inputs read and the output written once, in float32. A backward
        reads the gradient of the output, writes those of the inputs, and has two products for each of the forward."""
        shapes = self.shapes(**sizes)
        values = round(math.prod(shapes.get("v") or shapes["x"]) * self.growth(**sizes))
        moved = sum(map(math.prod, shapes.values())) + values
        passes, rounds = (1, 1) if mode == "forward" else (2, 3)
        operations = 2 * rounds * self.products * self.taps(**sizes) * values
        return 4 * passes * moved, operations


# --- implementations -------------------------------------------------------------------------------------------------


def neighborhood_attention_functions(device: torch.device, side: int, kernel: int, dilation: int, **_) -> Functions:
    window = naive.window_index(side, side, kernel, dilation, device)
    mask = torch.zeros(side**2, side**2, dtype=torch.bool, device=device).scatter_(1, window, True)

    def masked(q, k, v):
        tokens = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*tokens, attn_mask=mask).transpose(1, 2).unflatten(1, (side, side))

    return {
        OURS: lambda q, k, v: neighborhood_attention(q, k, v, kernel, dilation=dilation),
        "naive": lambda q, k, v: naive.neighborhood_attention(q, k, v, kernel, dilation),
        "masked sdpa": masked,
    }


def neighborhood_aggregate_functions(device: torch.device, kernel: int, **_) -> Functions:
    return {
        OURS: lambda logits, v, bias: neighborhood_aggregate(logits, v, kernel, bias),
        "naive": lambda logits, v, bias: naive.neighborhood_aggregate(logits, v, kernel, bias),
    }


def small_kernel_aggregate_functions(device: torch.device, **_) -> Functions:
    def channels_last(function):
        return lambda x, weight: function(x.permute(0, 3, 1, 2), weight.permute(0, 3, 4, 1, 2))

    return {OURS: channels_last(small_kernel_aggregate), "naive": channels_last(naive.small_kernel_aggregate)}


def outlook_attention_functions(device: torch.device, D: int, stride: int, **_) -> Functions:
    return {
        OURS: lambda logits, v: outlook_attention(v, logits, stride, D**-0.5),
        "naive": lambda logits, v: naive.outlook_attention(logits, v, stride, D**-0.5),
    }


def lightning_attention_functions(device: torch.device, heads: int, **_) -> Functions:
    slopes = alibi_slopes(heads).to(device)
    return {
        OURS: lambda q, k, v: lightning_attention(q, k, v, slopes)[0],
        "naive": lambda q, k, v: naive.lightning_attention(q, k, v, slopes),
    }


def halo_attention_functions(device: torch.device, block: int, halo: int, **_) -> Functions:
    return {
        OURS: lambda q, k, v, high, wide: halo_attention(q, k, v, high, wide, block, halo),
        "naive": lambda q, k, v, high, wide: naive.halo_attention(q, k, v, high, wide, block, halo),
    }


def local_cross_attention_functions(device: torch.device, **_) -> Functions:
    return {OURS: local_cross_attention, "naive": naive.local_cross_attention}


def window_attention_functions(device: torch.device, block: int, halo: int, shift: int, **_) -> Functions:
    return {
        OURS: lambda q, k, v, bias: window_attention(q, k, v, bias, block, halo, shift),
        "naive": lambda q, k, v, bias: naive.window_attention(q, k, v, bias, block, halo, shift),
    }


def reversed_attention_functions(device: torch.device, N: int, **_) -> Functions:
    factors = torch.linspace(0, 1, N, device=device).unsqueeze(-1)  # the plain sum of the output depends on v alone

    def unlike(function):
        return lambda **inputs: (y := function(**inputs)) * factors.to(y.dtype)

    return {OURS: unlike(reversed_attention), "naive": unlike(naive.reversed_attention)}


def coordinated_attention_functions(device: torch.device, B: int, N: int, groups: int, topk: int, **_) -> Functions:
    """With the choice of the prompts: the cosines of tokens and keys are given, one prompt to a key."""
    draw = torch.Generator().manual_seed(0)
    cosines = [torch.rand(B, rows, groups, generator=draw).to(device) for rows in (1, N)]

    def picked() -> Tensor:
        class_rows, rows = (
            torch.zeros_like(x, dtype=torch.bool).scatter(-1, x.topk(topk).indices, True) for x in cosines
        )
        return torch.cat([F.pad(class_rows, (0, groups)), F.pad(rows, (groups, 0))], dim=1)

    return {
        OURS: lambda q, k, v, prompt_k, prompt_v: coordinated_attention(q, k, v, prompt_k, prompt_v, picked()),
        "naive": lambda q, k, v, prompt_k, prompt_v: naive.coordinated_attention(q, k, v, prompt_k, prompt_v, picked()),
    }


def routed_attention_functions(device: torch.device, B: int, regions: int, topk: int, **_) -> Functions:
    affinity = torch.rand(B, regions**2, regions**2, generator=torch.Generator().manual_seed(0))
    index = affinity.topk(topk).indices.to(device)
    return {
        OURS: lambda q, k, v: routed_attention(q, k, v, index, (regions, regions)),
        "naive": lambda q, k, v: naive.routed_attention(q, k, v, index, regions),
    }


def sparse_attention_functions(device: torch.device, B: int, side: int, heads: int, topk: int, **_) -> Functions:
    affinity = torch.rand(B, heads, side**2, side**2, generator=torch.Generator().manual_seed(0))
    index = affinity.topk(topk).indices.to(device)

    def of_rows(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of_maps(q, k, v):
            rows = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
            return function(*rows).transpose(1, 2).unflatten(1, (side, side))

        return of_maps

    def masked(q, k, v):
        mask = torch.zeros(B, heads, side**2, side**2, dtype=torch.bool, device=device).scatter_(3, index, True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return {
        OURS: of_rows(lambda q, k, v: sparse_attention(q, k, v, index)),
        "naive": of_rows(lambda q, k, v: naive.sparse_attention(q, k, v, index)),
        "masked sdpa": of_rows(masked),
    }


def channels_first(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function of maps (B, C, H, W) as one of maps (B, H, W, C), by their names, in this order."""
    return lambda **maps: function(*(x.permute(0, 3, 1, 2) for x in maps.values())).permute(0, 2, 3, 1)


def carafe_functions(device: torch.device, kernel: int, **_) -> Functions:
    return {
        OURS: channels_first(lambda x, masks: carafe(x, masks, kernel)),
        "naive": channels_first(lambda x, masks: naive.carafe(x, masks, kernel)),
    }


def psa_mask_functions(device: torch.device, side: int, **_) -> Functions:
    kernel = 2 * side - 1
    return {
        OURS: channels_first(lambda x: psa_mask(x, (kernel, kernel), "collect")),
        "naive": channels_first(lambda x: naive.psa_mask(x, kernel)),
    }


def deformable_convolution_functions(device: torch.device, kernel: int, **_) -> Functions:
    def ours(x, offset, weight, mask):
        return deformable_convolution(x, offset, weight, None, mask, 1, kernel // 2)

    return {OURS: channels_first(ours), "naive": channels_first(naive.deformable_convolution)}


def position_relation_functions(device: torch.device, B: int, N: int, **_) -> Functions:
    source, target = torch.rand(2, B, N, 4, generator=torch.Generator().manual_seed(0)).to(device)
    return {
        OURS: lambda x, bias: position_relation(source, target, x, bias),
        "naive": lambda x, bias: naive.position_relation(source, target, x, bias),
    }


def position_attention_functions(device: torch.device, **_) -> Functions:
    from attlas.dense.segmentation.guided_attention import position_attention  # which needs mmseg

    return {OURS: lambda query, key, v: position_attention(query, key, v), "naive": naive.position_attention}


def bridging_attention_functions(device: torch.device, B: int, side: int, **_) -> Functions:
    """Of pixels 8 apart, as the first level of a detector has them."""
    at = 8 * torch.arange(side, device=device, dtype=torch.float32)
    pixels = torch.cartesian_prod(at, at).flip(1).expand(B, -1, -1)

    def call(function):
        def called(x, keys, values, table, spread):
            places = pixels, (0.5 + 0.25 * spread.float()) * 8 * side  # the key points lie all over the map
            return function(x, keys, values, table.float().abs(), *places, 1 / 8)

        return called

    return {OURS: call(bridging_attention), "naive": call(naive.bridging_attention)}


def deformable_attention_functions(device: torch.device, side: int, **_) -> Functions:
    """Every pixel of every level asks for places some pixels around it, as in the encoder of Deformable DETR."""
    sizes = [(side >> level,) * 2 for level in range(LEVELS)]
    lines = [torch.arange(0.5, length, device=device) / length for length, _ in sizes]
    centers = torch.cat([torch.cartesian_prod(line, line).flip(1) for line in lines])[:, None, None, None]
    sides, pixels = torch.tensor(sizes, device=device), torch.tensor(sizes, device=device).unsqueeze(1)

    def around_centers(function):
        return lambda v, offsets, weights: function(v, sides, centers + 2 * offsets / pixels, weights)

    return {OURS: around_centers(deformable_attention), "naive": around_centers(naive.deformable_attention)}


def boxes(B: int, side: int, R: int, device: torch.device) -> Tensor:
    """Boxes (R, 5) of whole pixels inside the maps, 4 to 24 along a side."""
    draw = torch.Generator().manual_seed(R)
    size = torch.randint(4, min(side, 25), (R, 2), generator=draw)
    start = (torch.rand(R, 2, generator=draw) * (side - size)).long()
    return torch.cat([torch.randint(B, (R, 1), generator=draw), start, start + size], 1).to(device, torch.float32)


def roi_align_functions(device: torch.device, B: int, side: int, R: int, bins: int, ratio: int, **_) -> Functions:
    rois = boxes(B, side, R, device)
    return {
        OURS: lambda x: roi_align(x.permute(0, 3, 1, 2), rois, bins, sampling_ratio=ratio),
        "naive": lambda x: naive.roi_align(x.permute(0, 3, 1, 2), rois, bins, ratio),
    }


def combiner_functions(ours: Callable[..., Tensor]) -> Callable[..., Functions]:
    """Of one of the forms, causal."""

    def functions(device: torch.device, w: int | None = None, **_) -> Functions:
        options = {} if w is None else dict(segment=w, causal=True)
        written_out = getattr(naive, ours.__name__)
        return {
            OURS: functools.partial(ours, **options),
            "naive": written_out if w is None else functools.partial(written_out, w=w),
        }

    return functions


def nprf_attention_functions(device: torch.device, D: int, m: int, **_) -> Functions:
    features = torch.randn(m, D, generator=torch.Generator().manual_seed(0)).to(device)
    return {
        OURS: lambda q, k, v, bias: nprf_attention(q, k, v, features.to(q.dtype), bias),
        "naive": lambda q, k, v, bias: naive.nprf_attention(q, k, v, features.to(q.dtype), bias),
    }


def roi_pool_functions(device: torch.device, B: int, side: int, R: int, bins: int, **_) -> Functions:
    rois = boxes(B, side, R, device) - torch.tensor([0, 0, 0, 1, 1], device=device)  # the last pixel is part of a box
    return {
        OURS: lambda x: roi_pool(x.permute(0, 3, 1, 2), rois, bins),
        "naive": lambda x: naive.roi_pool(x.permute(0, 3, 1, 2), rois, bins),
    }


# --- the list --------------------------------------------------------------------------------------------------------


def attention_shapes(B: int, side: int, heads: int, D: int, **_) -> Shapes:
    return dict.fromkeys(("q", "k", "v"), (B, side, side, heads, D))


def reversed_shapes(B: int, N: int, heads: int, D: int) -> Shapes:
    return {**dict.fromkeys(("q", "k", "v"), (B, heads, N, D)), "weight": (B, heads, N)}


def coordinated_shapes(B: int, N: int, heads: int, D: int, groups: int, **_) -> Shapes:
    tokens, prompts = (B, heads, 1 + N, D), (B, heads, 2 * groups, D)
    return {**dict.fromkeys(("q", "k", "v"), tokens), **dict.fromkeys(("prompt_k", "prompt_v"), prompts)}


def halo_shapes(B: int, side: int, heads: int, D: int, block: int, halo: int) -> Shapes:
    table = (2 * (block + 2 * halo) - 1, D)
    return attention_shapes(B, side, heads, D) | {"high": table, "wide": table}


def resample_shapes(B: int, tokens: int, side: int, heads: int, D: int) -> Shapes:
    fine = (B, side, side, heads, D)
    return {"q": (B, tokens, tokens, heads, D), "k": fine, "v": fine}


def window_shapes(B: int, side: int, heads: int, D: int, block: int, halo: int, shift: int) -> Shapes:
    bias = (heads, block**2, (block + 2 * halo) ** 2)
    return attention_shapes(B, side, heads, D) | {"bias": bias}


def aggregate_shapes(B: int, side: int, heads: int, D: int, kernel: int) -> Shapes:
    table = (heads, 2 * kernel - 1, 2 * kernel - 1)
    return {"logits": (B, side, side, heads, kernel**2), "v": (B, side, side, heads, D), "bias": table}


def outlook_shapes(B: int, side: int, heads: int, D: int, kernel: int, stride: int) -> Shapes:
    windows = -(-side // stride)
    return {"logits": (B, windows, windows, heads, kernel**2, kernel**2), "v": (B, side, side, heads, D)}


def small_kernel_shapes(B: int, side: int, C: int, Cw: int, kernel: int) -> Shapes:
    return {"x": (B, side, side, C), "weight": (B, side, side, Cw, kernel**2)}


def carafe_shapes(B: int, side: int, C: int, kernel: int, scale: int) -> Shapes:
    return {"x": (B, side, side, C), "masks": (B, scale * side, scale * side, kernel**2)}


def psa_mask_shapes(B: int, side: int) -> Shapes:
    return {"x": (B, side, side, (2 * side - 1) ** 2)}


def deformable_shapes(B: int, side: int, C: int, kernel: int) -> Shapes:
    moves, factors = (B, side, side, 2 * kernel**2), (B, side, side, kernel**2)
    return {"x": (B, side, side, C), "offset": moves, "weight": (C, kernel, kernel, C), "mask": factors}


def relation_shapes(heads: int, **_) -> Shapes:
    return {"x": (heads, 64), "bias": (heads,)}


def bridging_shapes(B: int, side: int, heads: int, D: int, keys: int, table: int) -> Shapes:
    rows = dict.fromkeys(("keys", "values"), (B, keys, heads, D))
    return {"x": (B, side**2, heads, D), **rows, "table": (heads, table, table), "spread": (B, keys, 2)}


def position_shapes(B: int, N: int, C: int, D: int) -> Shapes:
    return {"query": (B, N, D), "key": (B, N, D), "v": (B, N, C)}


def level_shapes(B: int, side: int, heads: int, D: int, places: int) -> Shapes:
    queries = sum((side >> level) ** 2 for level in range(LEVELS))
    offsets = (B, queries, heads, LEVELS, places, 2)
    return {"v": (B, queries, heads, D), "offsets": offsets, "weights": offsets[:-1]}


def sequence_shapes(B: int, N: int, heads: int, D: int, **_) -> Shapes:
    return dict.fromkeys(("q", "k", "v"), (B, heads, N, D))


def nprf_shapes(B: int, N: int, heads: int, D: int, m: int) -> Shapes:
    return sequence_shapes(B, N, heads, D) | {"bias": (heads, 2 * N - 1)}


def map_shapes(B: int, side: int, C: int, **_) -> Shapes:
    return {"x": (B, side, side, C)}


def boxes_growth(B: int, side: int, R: int, bins: int, **_) -> float:
    return R * bins**2 / (B * side**2)


def kernel_taps(kernel: int, **_) -> int:
    return kernel**2


IMAGE_OPERATORS = {
    "deformable_attention": Operator(
        level_shapes,
        deformable_attention_functions,
        lambda places, **_: 4 * LEVELS * places,
        products=1,
        sizes=[dict(B=1, side=side, heads=8, D=32, places=4) for side in (64, 128)],
    ),
    "neighborhood_attention": Operator(
        attention_shapes,
        neighborhood_attention_functions,
        kernel_taps,
        products=2,
        sizes=[dict(B=1, side=56, heads=4, D=32, kernel=7, dilation=dilation) for dilation in (1, 8)],
    ),
    "neighborhood_aggregate": Operator(
        aggregate_shapes,
        neighborhood_aggregate_functions,
        kernel_taps,
        products=1,
        sizes=[dict(B=batch, side=28, heads=8, D=16, kernel=kernel) for batch, kernel in ((1, 5), (8, 5), (1, 13))],
    ),
    "small_kernel_aggregate": Operator(
        small_kernel_shapes,
        small_kernel_aggregate_functions,
        kernel_taps,
        products=1,
        sizes=[dict(B=batch, side=28, C=128, Cw=16, kernel=3) for batch in (1, 8)],
    ),
    **{
        ours.__name__: Operator(
            sequence_shapes,
            combiner_functions(ours),
            taps,
            products=2,
            sizes=[dict(B=1, N=w**2, heads=2, D=32) | (dict(w=w) if rows else {}) for w in (64, 128)],
            referred=False,
        )
        for ours, rows, taps in (
            (combiner_fixed, True, lambda N, w, **_: (w + N // w) // 2),  # half of them, as in all that is causal
            (combiner_logsparse, False, lambda N, **_: 1 + N.bit_length() // 2),
            (combiner_rowmajor, True, lambda N, w, **_: (w + N // w) // 2),
            (combiner_mixture, True, lambda N, w, **_: (2 * w + 3 * N // w) // 2),
        )
    },
    "nprf_attention": Operator(
        nprf_shapes,
        nprf_attention_functions,
        lambda m, **_: m,  # each query reads a sum for every feature
        products=2,
        sizes=[dict(B=1, N=size, heads=2, D=32, m=32) for size in (2048, 8192)],
    ),
    "outlook_attention": Operator(
        outlook_shapes,
        outlook_attention_functions,
        lambda kernel, stride, **_: kernel**4 // stride**2,
        products=1,
        sizes=[dict(B=batch, side=28, heads=6, D=32, kernel=3, stride=2) for batch in (1, 8)],
    ),
    "position_relation": Operator(
        relation_shapes,
        position_relation_functions,
        lambda **_: 64,
        products=1,
        sizes=[dict(B=1, N=size, heads=8) for size in (300, 900)],
        growth=lambda B, N, **_: B * N**2 / 64,
    ),
    "lightning_attention": Operator(
        lambda B, heads, N, D: dict.fromkeys("qkv", (B, heads, N, D)),
        lightning_attention_functions,
        lambda D, **_: D,
        products=2,
        sizes=[dict(B=1, heads=8, N=length, D=64) for length in (1024, 8192)],
    ),
    "halo_attention": Operator(
        halo_shapes,
        halo_attention_functions,
        lambda block, halo, **_: (block + 2 * halo) ** 2,
        products=2,
        sizes=[dict(B=batch, side=32, heads=8, D=16, block=8, halo=3) for batch in (1, 8)],
    ),
    "window_attention": Operator(
        window_shapes,
        window_attention_functions,
        lambda block, halo, **_: (block + 2 * halo) ** 2,
        products=2,
        # HAT's: shifted windows, and overlapping ones
        sizes=[dict(B=1, side=64, heads=6, D=30, block=16, halo=halo, shift=shift) for halo, shift in ((0, 8), (4, 0))],
    ),
    "local_cross_attention": Operator(
        resample_shapes,
        local_cross_attention_functions,
        lambda tokens, side, **_: (side // tokens) ** 2,
        products=2,
        # a projector's tokens on the patches of a ViT-L/14 at 336 x 336, and on a finer grid
        sizes=[dict(B=1, tokens=tokens, side=side, heads=16, D=128) for tokens, side in ((12, 24), (24, 96))],
        growth=lambda tokens, side, **_: (tokens / side) ** 2,
    ),
    "roi_align": Operator(
        map_shapes,
        roi_align_functions,
        lambda **_: 4,  # pixels around a sample
        products=1,
        sizes=[dict(B=1, side=side, C=256, R=256, bins=7, ratio=2) for side in (32, 128)],
        growth=boxes_growth,
    ),
    "roi_pool": Operator(
        map_shapes,
        roi_pool_functions,
        lambda **_: 1,
        products=1,
        sizes=[dict(B=1, side=side, C=256, R=256, bins=7) for side in (32, 128)],
        growth=boxes_growth,
    ),
    "reversed_attention": Operator(
        reversed_shapes,
        reversed_attention_functions,
        lambda N, **_: N,
        products=2,
        # DependencyViT-T at 224 x 224, and maps of 512 x 512 and 1024 x 1024 of DependencyViT-S
        sizes=[dict(B=8, N=196, heads=12, D=16), *(dict(B=1, N=size, heads=12, D=32) for size in (1024, 4096))],
    ),
    "coordinated_attention": Operator(
        coordinated_shapes,
        coordinated_attention_functions,
        lambda N, groups, **_: 1 + N + 2 * groups,
        products=2,
        # TCPA of a ViT-B/16 at 224 x 224 and 512 x 512
        sizes=[dict(B=size, N=pixels, heads=12, D=64, groups=18, topk=10) for size, pixels in ((8, 196), (1, 1024))],
        referred=False,
    ),
    "routed_attention": Operator(
        attention_shapes,
        routed_attention_functions,
        lambda side, regions, topk, **_: topk * (side // regions) ** 2,
        products=2,
        sizes=[dict(B=batch, side=56, heads=4, D=32, regions=7, topk=4) for batch in (1, 8)],
    ),
    "sparse_attention": Operator(
        attention_shapes,
        sparse_attention_functions,
        lambda topk, **_: topk,
        products=2,
        sizes=[dict(B=1, side=side, heads=6, D=64, topk=side**2 // 4) for side in (14, 28)],
    ),
    "carafe": Operator(
        carafe_shapes,
        carafe_functions,
        kernel_taps,
        products=1,
        sizes=[dict(B=1, side=50, C=256, kernel=5, scale=2)],
        growth=lambda scale, **_: scale**2,
    ),
    "psa_mask": Operator(
        psa_mask_shapes,
        psa_mask_functions,
        lambda **_: 0,
        products=0,
        sizes=[dict(B=1, side=48)],
        growth=lambda side, **_: side**2 / (2 * side - 1) ** 2,
    ),
    "deformable_convolution": Operator(
        deformable_shapes,
        deformable_convolution_functions,
        lambda C, kernel, **_: C * kernel**2,
        products=1,
        sizes=[dict(B=batch, side=56, C=128, kernel=3) for batch in (1, 8)],
    ),
    "bridging_attention": Operator(
        bridging_shapes,
        bridging_attention_functions,
        lambda keys, **_: keys,
        products=2,
        sizes=[dict(B=batch, side=64, heads=8, D=32, keys=50, table=401) for batch in (1, 8)],
    ),
    "position_attention": Operator(
        position_shapes,
        position_attention_functions,
        lambda N, C, D, **_: N * (C + D) // C,
        products=1,
        sizes=[dict(B=1, N=size, C=64, D=8) for size in (4096, 16384)],  # of images of 256 x 256 and 512 x 512
        referred=False,
    ),
}


def make(run: Run, *, operator: Operator, mode: str, **sizes: int) -> dict[str, Callable]:
    shapes = operator.shapes(**sizes).items()
    inputs = {name: random(run, *shape, seed=i) for i, (name, shape) in enumerate(shapes)}
    calls = differentiable(operator.functions(run.device, **sizes), inputs, mode)
    return calls if operator.referred else {name: call for name, call in calls.items() if name != "reference"}


def case(name: str, mode: str, sizes: dict[str, int]) -> Case:
    operator = IMAGE_OPERATORS[name]
    build = functools.partial(make, operator=operator, mode=mode)
    return Case(f"{name}, {mode}", sizes, build, *operator.needs(mode, sizes))


def image_cases() -> Iterator[Case]:
    for name, operator in IMAGE_OPERATORS.items():
        for mode in ("forward", "forward+backward"):
            yield from (case(name, mode, sizes) for sizes in operator.sizes)
