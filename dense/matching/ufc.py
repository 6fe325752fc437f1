"""UFC: attention in which the features of two images and the costs of matching them refine each other, coarse to fine.

"Unifying Feature and Cost Aggregation with Transformers for Semantic and Visual Correspondence", ICLR 2024, arXiv
2403.11120. The authors never released code or weights of that paper (KU-CVLAB/UFC holds a README). What is implemented
here is the module that they use in CoPoNeRF (CVPR 2024, KU-CVLAB/CoPoNeRF, commit 7a1b994), which names UFC as its
source. The level is chosen by confidence as the paper's abstract says it; how confidence is measured is our inference.

The cost of a pair is [B, heads, H, W, H', W'], source before target, at the size of the coarsest maps (`cost_size`, c
positions) at every level. What stays equal to the authors' module, and costs less:

- Resizing is linear, so what is linear in the cost is computed on its own grid, before it is resized: queries and keys,
  and the attention whose values are costs. No tensor of (F positions) x (heads c) is made: at 64 x 64 positions
  that is 33 MB each.
- The cosine cost of the finest maps (64^4 numbers, 67 MB) is made in tiles, of which pooled costs, or soft arg-maxima,
  are kept; see `pooled_costs` and `soft_argmax`.
- The mean of the resized costs of the levels is one product of the resized unit features, side by side.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...data import one_of, positive
from ...registry import MODELS

TILE = 2**20  # numbers of a cost that are there at a time
FUSIONS = ("mean", "peak", "cycle")

# --- costs -----------------------------------------------------------------------------------------------------------


def unit(features: Tensor, dim: int = 1) -> Tensor:
    """Features over (their L2 norm + 1e-5)."""
    return features / (features.norm(dim=dim, keepdim=True) + 1e-5)


def cosine_cost(source: Tensor, target: Tensor) -> Tensor:
    """The whole cosine cost (B, 1, H, W, H', W') of maps (B, D, H, W) and (B, D, H', W')."""
    cost = unit(source).flatten(2).transpose(1, 2) @ unit(target).flatten(2)
    return cost.view(len(source), 1, *source.shape[2:], *target.shape[2:])


def _tiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """A tile of a cost: in training its numbers are made again for the backward pass, and not kept."""
    return checkpoint(function, *arguments, use_reentrant=False) if torch.is_grad_enabled() else function(*arguments)


def pooled_costs(source: Tensor, target: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The cosine cost of two maps with blocks of stride x stride positions pooled by their maximum: those of the target
    (B, 1, H, W, H'/stride, W'/stride), and those of the source (B, 1, H/stride, W/stride, H', W').

    Args:
        source, target: (B, D, H, W), (B, D, H', W'), whose sides `stride` divides.

    Raises:
        ValueError: it does not divide them.
    """
    if any(side % stride for side in (*source.shape[2:], *target.shape[2:])):
        raise ValueError(
            f"maps of {tuple(source.shape[2:])} and {tuple(target.shape[2:])} positions cannot be pooled in blocks of "
            f"stride={stride}: it must divide their sides."
        )
    if stride == 1:
        cost = cosine_cost(source, target)
        return cost, cost
    source, target = unit(source), unit(target)
    (batch, _, height, width), (rows, columns) = source.shape, target.shape[2:]
    flat = target.flatten(2)

    def tile(part: Tensor) -> tuple[Tensor, Tensor]:
        blocks = part.shape[2] // stride
        cost = part.flatten(2).transpose(1, 2) @ flat
        by_target = cost.view(batch, -1, rows // stride, stride, columns // stride, stride).amax((3, 5))
        by_source = cost.view(batch, blocks, stride, width // stride, stride, -1).amax((2, 4))
        return by_target, by_source

    deep = stride * max(1, TILE // (batch * stride * width * rows * columns))
    pairs = [_tiled(tile, part) for part in source.split(deep, dim=2)]
    by_target, by_source = (torch.cat(parts, dim=1) for parts in zip(*pairs))
    return (
        by_target.view(batch, 1, height, width, rows // stride, columns // stride),
        by_source.view(batch, 1, height // stride, width // stride, rows, columns),
    )


def unit_grid(height: int, width: int, like: Tensor) -> Tensor:
    """x and y (height * width, 2) of the positions of a grid, from -1 at the first to 1 at the last."""
    y, x = (torch.linspace(-1, 1, side, dtype=like.dtype, device=like.device) for side in (height, width))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)


class Found(NamedTuple):
    """Where positions of an image are in another: `places` (B, 2, H, W), x and y from -1 to 1 between the middles of
    the first and last positions, and `peak` (B, H, W), the largest weight of the soft arg-max, from 0 to 1."""

    places: Tensor
    peak: Tensor


def stacked(maps: Sequence[Tensor], size: Sequence[int] | None = None) -> Tensor:
    """Features (B, L D, H, W) of L levels side by side, each of unit length and then resized, whose products are the
    mean of the levels' resized cosine costs. The size is that of the last level unless given."""
    size = maps[-1].shape[2:] if size is None else size
    return torch.cat([resized(unit(level), size) for level in maps], dim=1) * len(maps) ** -0.5


def soft_argmax(queries: Tensor, keys: Tensor, temperature: float = 0.02, seen: Tensor | None = None) -> Found:
    """For each position of an image, the mean place in the other, weighted by the soft-max over `temperature` of the
    cost, which is the product of their features. It is made in tiles.

    Args:
        queries, keys: features (B, D, H, W) of the image, and (B, D, H', W') of the other; see `stacked`.
        seen: bool (B, H', W'), positions of the other image that may be found; None for all.

    Raises:
        ValueError: of the other image no position may be found.
    """
    rows, columns = keys.shape[2:]
    places = unit_grid(rows, columns, keys)
    flat, hidden = keys.flatten(2), None
    if seen is not None:
        if not seen.flatten(1).any(1).all():
            raise ValueError("the mask of an image leaves no position to be found.")
        hidden = ~seen.flatten(1)[:, None]

    def tile(part: Tensor) -> tuple[Tensor, Tensor]:
        logits = part.transpose(1, 2) @ flat / temperature
        if hidden is not None:
            logits = logits.masked_fill(hidden, float("-inf"))
        weights = logits.softmax(-1)
        return weights @ places, weights.amax(-1)

    many = max(1, TILE // (len(keys) * rows * columns))
    parts = [_tiled(tile, part) for part in queries.flatten(2).split(many, dim=2)]
    found, peak = (torch.cat(each, dim=1) for each in zip(*parts))
    return Found(found.transpose(1, 2).unflatten(2, queries.shape[2:]), peak.unflatten(1, queries.shape[2:]))


def sampled(values: Tensor, places: Tensor) -> Tensor:
    """A map (B, C, H, W) bilinearly at normalized places (B, 2, h, w); beyond its borders as at them."""
    return F.grid_sample(values, places.permute(0, 2, 3, 1), align_corners=True, padding_mode="border")


def cycle_error(there: Tensor, back: Tensor) -> Tensor:
    """How far (B, H, W) from each position of an image the way to the other and back ends, both ways normalized places;
    in positions."""
    return flow_of(sampled(back, there)).norm(dim=1)


def flow_of(places: Tensor) -> Tensor:
    """Normalized places (B, 2, H, W), of an image with as many positions, as flow in positions."""
    height, width = places.shape[2:]
    grid = unit_grid(height, width, places).T.view(1, 2, height, width)
    return (places - grid) * places.new_tensor([(width - 1) / 2, (height - 1) / 2]).view(1, 2, 1, 1)


# --- convolutions of costs -------------------------------------------------------------------------------------------


def swap(cost: Tensor) -> Tensor:
    """A cost [B, C, H, W, H', W'] with its images exchanged."""
    return cost.permute(0, 1, 4, 5, 2, 3)


class Conv4d(nn.Module):
    """Center-pivot convolution of a cost [B, C, Hq, Wq, Hs, Ws]: a 2-D convolution over the query axes, for every
    support position, plus one over the support axes. With a stride, each first pools the axes that it does not convolve
    (maximum, kernel = stride, ceil mode).

    Args:
        in_channels, channels: channels of the input and of the output.
        kernel, stride, padding: of both convolutions.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, stride: int = 1, padding: int = 1):
        super().__init__()
        self.stride = stride
        self.query_conv = nn.Conv2d(in_channels, channels, kernel, stride, padding)
        self.supp_conv = nn.Conv2d(in_channels, channels, kernel, stride, padding)

    def forward(self, cost: Tensor) -> Tensor:
        return self.mixed(self._pooled(cost), swap(self._pooled(swap(cost))))

    def of_maps(self, source: Tensor, target: Tensor) -> Tensor:
        """`forward` of the cosine cost of two maps, which is never there as a whole where there is a stride."""
        return self.mixed(*pooled_costs(source, target, self.stride))

    def mixed(self, by_support: Tensor, by_query: Tensor) -> Tensor:
        """The sum of both branches, of the cost with pooled support axes, and of that with pooled query axes.

        Raises:
            ValueError: the branches differ in size, because the stride divides no side.
        """
        query = swap(_last_two(self.query_conv, swap(by_support)))
        support = _last_two(self.supp_conv, by_query)
        if query.shape != support.shape:
            raise ValueError(
                f"Conv4d with stride={self.stride} makes costs of {tuple(query.shape[2:])} and "
                f"{tuple(support.shape[2:])} positions in its two branches; the stride must divide all sides."
            )
        return query + support

    def _pooled(self, cost: Tensor) -> Tensor:
        if self.stride == 1:
            return cost
        return _last_two(lambda planes: F.max_pool2d(planes, self.stride, self.stride, ceil_mode=True), cost)


def _last_two(function: Callable[[Tensor], Tensor], cost: Tensor) -> Tensor:
    """A function of planes (N, C, H, W) over the last two axes of a cost."""
    batch, channels, rows, columns, *size = cost.shape
    planes = function(cost.permute(0, 2, 3, 1, 4, 5).reshape(batch * rows * columns, channels, *size))
    return planes.unflatten(0, (batch, rows, columns)).permute(0, 3, 1, 2, 4, 5)


class Encoder4D(nn.Module):
    """Conv4d, group norm, ReLU, repeated.

    Args:
        channels: channels of the input and behind each convolution.
        kernel, stride, padding: of every `Conv4d`; the padding is half the kernel unless given.
        groups: groups of the norms.
    """

    def __init__(
        self, channels: Sequence[int], kernel: int = 3, stride: int = 1, padding: int | None = None, groups: int = 1
    ):
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv4d = nn.ModuleList(
            nn.Sequential(Conv4d(before, after, kernel, stride, padding), nn.GroupNorm(groups, after), nn.ReLU())
            for before, after in zip(channels, channels[1:])
        )

    def forward(self, cost: Tensor) -> Tensor:
        for layer in self.conv4d:
            cost = layer(cost)
        return cost

    def of_maps(self, source: Tensor, target: Tensor) -> Tensor:
        """`forward` of the cosine cost of two maps; see `Conv4d.of_maps`."""
        begin: Any = self.conv4d[0]
        first, *after = begin
        cost = first.of_maps(source, target)
        for layer in (*after, *self.conv4d[1:]):
            cost = layer(cost)
        return cost


# --- one layer -------------------------------------------------------------------------------------------------------


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map (B, C, H, W) bilinearly in another size, its corners at the corners."""
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def resized_transpose(x: Tensor, size: Sequence[int]) -> Tensor:
    """What the transpose of `resized`, from `size` to that of x (B, C, H, W), makes of x: (B, C, *size)."""
    if x.shape[2:] == tuple(size):
        return x
    rows, columns = (
        F.interpolate(torch.eye(small, dtype=x.dtype, device=x.device)[None], large, mode="linear", align_corners=True)[
            0
        ]
        for small, large in zip(size, x.shape[2:])
    )
    return rows @ x @ columns.T


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """φ(queries) (φ(keys)ᵀ values) over (φ(queries) · Σ φ(keys) + 1e-6), φ = elu + 1, of (B, h, N, d) and values
    (B, h, N, v). Source: "Transformers are RNNs", arXiv 2006.16236."""
    queries, keys = F.elu(queries) + 1, F.elu(keys) + 1
    return _normalized(queries, keys) @ (keys.transpose(-1, -2) @ values / keys.shape[-2])


def _normalized(queries: Tensor, keys: Tensor) -> Tensor:
    """Feature-mapped queries, over what makes the weights of each sum to 1 (of keys' products over their number)."""
    return queries / (queries @ keys.sum(-2).unsqueeze(-1) + 1e-6) * keys.shape[-2]


class DepthwiseConv(nn.Module):
    """3x3 convolution of every channel of tokens (B, H W, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.dwconv(x.transpose(1, 2).unflatten(2, tuple(size))).flatten(2).transpose(1, 2)


class TokenMlp(nn.ModuleList):
    """Linear, depthwise 3x3 convolution, GELU, linear, on tokens (B, H W, C)."""

    def __init__(self, dim: int, ratio: int = 4):
        hidden = ratio * dim
        super().__init__([nn.Linear(dim, hidden), DepthwiseConv(hidden), nn.GELU(), nn.Linear(hidden, dim)])

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        first, depthwise, activation, last = self
        return last(activation(depthwise(first(x), size)))


class UFCLayer(nn.Module):
    """Integrative self-attention of each image over its features and costs; costs from the refined features;
    integrative cross-attention, whose map is the cost.

    Args:
        dim: channels D of the tokens.
        heads: number of heads, and of channels of the cost.
        cost_size: rows and columns of the cost, for both images.
        stride: positions of the maps along a side of a position of the cost.
        refine_last: whether costs of the features behind the cross-attention are added at the end.

    `forward(cost, source, target)`: [B, heads, *cost_size, *cost_size] and tokens (B, stride² rows columns, D); gives
    the same.
    """

    def __init__(self, dim: int, heads: int, cost_size: Sequence[int], stride: int = 1, refine_last: bool = True):
        super().__init__()
        self.heads, self.cost_size, self.stride = heads, _pair("cost_size", cost_size), positive("stride", stride)
        self.size = tuple(stride * side for side in self.cost_size)
        if dim % heads:
            raise ValueError(f"dim={dim} must be a multiple of heads={heads}.")
        positions = self.cost_size[0] * self.cost_size[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, stride**2 * positions, 1, dim // heads))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.q_proj = nn.Linear(heads * positions + dim, dim)
        self.k_proj = nn.Linear(heads * positions + dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.v_proj_corr = Encoder4D((heads, heads))
        self.mlp = TokenMlp(dim)
        self.mlp_corr = Encoder4D((heads, 4 * heads, heads))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feat_to_corr1 = cost_encoder(heads, stride)
        self.mlp_refine_corr = Encoder4D((heads, 4 * heads, heads))
        self.v_cross = nn.Linear(dim, dim)
        self.mlp_cross = TokenMlp(dim)
        self.norm_cross1, self.norm_cross2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feat_to_corr2 = cost_encoder(heads, stride) if refine_last else None
        self.mlp_refine_corr2 = Encoder4D((heads, 4 * heads, heads)) if refine_last else None

    def forward(self, cost: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cost_source, source = self.attend_self(cost, source)
        cost_target, target = self.attend_self(swap(cost), target)
        cost = cost_source + swap(cost_target)
        cost = cost + self.feat_to_corr1.of_maps(self._map(source), self._map(target))
        cost = cost + self.mlp_refine_corr(cost)
        source, target = self.attend_cross(cost, source, target)
        if self.feat_to_corr2 is not None and self.mlp_refine_corr2 is not None:
            cost = cost + self.feat_to_corr2.of_maps(self._map(source), self._map(target))
            cost = cost + self.mlp_refine_corr2(cost)
        return cost, source, target

    def attend_self(self, cost: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cost and tokens of one image, whose axes stand first in the cost."""
        features = self.norm1(x)
        queries = self._heads(self._joint(self.q_proj, cost, features)) + self.pos_embed.transpose(1, 2)
        keys = self._heads(self._joint(self.k_proj, cost, features)) + self.pos_embed.transpose(1, 2)
        queries, keys = F.elu(queries) + 1, F.elu(keys) + 1
        weights = _normalized(queries, keys)  # (B, h, N, d)
        values = self._heads(self.v_proj(features))
        message = weights @ (keys.transpose(-1, -2) @ values / keys.shape[-2])
        # of costs: what the grid of the features would resize, the grid of the cost sums before
        costs = self.v_proj_corr(cost).flatten(4).flatten(2, 3)  # (B, h, c, c')
        few_keys = self._on_cost(keys, resized_transpose)
        few = self._on_cost(weights, resized)
        cost_message = few @ (few_keys.transpose(-1, -2) @ costs / keys.shape[-2])
        x = x + message.transpose(1, 2).flatten(2)
        cost = cost + cost_message.unflatten(2, self.cost_size).unflatten(4, self.cost_size)
        x = x + self.mlp(self.norm2(x), self.size)
        return cost + self.mlp_corr(cost), x

    def attend_cross(self, cost: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of both images, each behind a message from the other, by the soft-max of the cost."""
        logits = cost.flatten(4).flatten(2, 3)  # (B, h, c, c')
        values = [self._heads(self.v_cross(self.norm_cross1(self._block_means(x)))) for x in (source, target)]
        messages = logits.softmax(-1) @ values[1], logits.softmax(-2).transpose(-1, -2) @ values[0]
        found = []
        for x, message in zip((source, target), messages):
            on_grid = message.transpose(2, 3).flatten(1, 2).unflatten(2, self.cost_size)
            spread = F.interpolate(on_grid, scale_factor=self.stride, mode="nearest") if self.stride > 1 else on_grid
            x = x + spread.flatten(2).transpose(1, 2)
            found.append(x + self.mlp_cross(self.norm_cross2(x), self.size))
        return found[0], found[1]

    def _joint(self, layer: nn.Linear, cost: Tensor, features: Tensor) -> Tensor:
        """`layer` of the cost, resized to the features' grid, beside the features; the cost goes through it first."""
        on_cost = cost.permute(0, 2, 3, 1, 4, 5).flatten(3)  # (B, rows, columns, heads c')
        wide = on_cost.shape[-1]
        by_cost = F.linear(on_cost, layer.weight[:, :wide]).permute(0, 3, 1, 2)
        spread = resized(by_cost, self.size).flatten(2).transpose(1, 2)
        return spread + F.linear(features, layer.weight[:, wide:], layer.bias)

    def _on_cost(self, x: Tensor, function: Callable[[Tensor, Sequence[int]], Tensor]) -> Tensor:
        """Heads (B, h, N, d) brought to the positions of the cost (B, h, c, d)."""
        on_grid = x.transpose(2, 3).flatten(1, 2).unflatten(2, self.size)
        return function(on_grid, self.cost_size).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _map(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unflatten(2, self.size)

    def _block_means(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self._map(x), self.stride).flatten(2).transpose(1, 2)


def cost_encoder(heads: int, stride: int) -> Encoder4D:
    """From the cosine cost of maps to the cost of the network: kernels of 3, and of 5 for stride 4."""
    return Encoder4D((1, heads), max(3, stride + 1 - stride % 2), stride)


def _pair(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"{name} is {size!r}; it must be a number, or (rows, columns).")
    return positive(name, sides[0]), positive(name, sides[1])


# --- the network -----------------------------------------------------------------------------------------------------


class Aggregated(NamedTuple):
    """What the network makes of the maps of two images.

    source, target: refined maps (B, D, stride rows, stride columns) of every level, coarse to fine.
    cost: the cost [B, heads, *cost_size, *cost_size] behind the last layer.
    """

    source: list[Tensor]
    target: list[Tensor]
    cost: Tensor

    def mean_cost(self) -> Tensor:
        """The mean (B, 1, H, W, H, W) of the cosine costs of the levels, resized to the finest: 67 MB for 64 x 64
        positions. `UFC.match` does without."""
        source, target = stacked(self.source), stacked(self.target)
        cost = source.flatten(2).transpose(1, 2) @ target.flatten(2)
        return cost.view(len(cost), 1, *source.shape[2:], *target.shape[2:])


@MODELS.register_module()
class UFC(nn.Module):
    """Feature and cost aggregation of two images' maps, coarse to fine.

    Args:
        in_channels: channels of the maps of each level, the coarsest first.
        cost_size: rows and columns of the coarsest map, and of the cost at every level; a number for both. Weights
            depend on it, so a network works at one size.
        strides: positions of the map of each level along a side of one of the coarsest.
        dim: channels D of the refined features.
        heads: number of heads.
        depths: number of layers of each level.
        temperature: of the soft arg-max.
        fusion: how the levels give one result: "mean" of their costs, as the code has it; or by position the level
            whose soft-max has the highest "peak", or whose way there and back has the smallest error ("cycle"), as we
            understand the paper's choice by confidence.
        refine_last: as of `UFCLayer`, of the last layer of the last level; the others always refine.

    `forward(source, target)` takes maps (B, C, H, W) of each level, coarsest first, and gives `Aggregated`.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (512, 256, 128),
        cost_size: int | Sequence[int] = 16,
        strides: Sequence[int] = (1, 2, 4),
        dim: int = 256,
        heads: int = 8,
        depths: Sequence[int] = (2, 2, 1),
        temperature: float = 0.02,
        fusion: str = "mean",
        refine_last: bool = True,
    ):
        super().__init__()
        self.strides, self.in_channels = tuple(strides), tuple(in_channels)
        if not len(in_channels) == len(strides) == len(depths) > 0:
            raise ValueError(
                f"in_channels={in_channels}, strides={strides} and depths={depths} must have one entry for each level."
            )
        if strides[0] != 1 or any(b % a for a, b in zip(strides, strides[1:])):
            raise ValueError(f"strides={strides} must begin with 1, and each must be a multiple of the one before.")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; it must be positive.")
        self.cost_size, self.temperature = _pair("cost_size", cost_size), temperature
        self.fusion = one_of("fusion", fusion, FUSIONS)
        last = len(strides) - 1, depths[-1] - 1
        self.layers = nn.ModuleList(
            nn.ModuleList(
                UFCLayer(dim, heads, self.cost_size, stride, refine_last or (level, layer) != last)
                for layer in range(depth)
            )
            for level, (stride, depth) in enumerate(zip(strides, depths))
        )
        self.embedding = nn.ModuleList(cost_encoder(heads, stride) for stride in strides)
        self.proj_feat = nn.ModuleList(nn.Sequential(nn.Linear(wide, dim), nn.ReLU()) for wide in in_channels)

    def forward(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> Aggregated:
        self._check("source", source)
        self._check("target", target)
        found, cost = Aggregated([], [], source[0].new_zeros(())), source[0].new_zeros(())
        project: Any
        embed: Any
        layers: Any
        for level, (project, embed, layers) in enumerate(zip(self.proj_feat, self.embedding, self.layers)):
            a, b = (project(maps[level].permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for maps in (source, target))
            size = a.shape[2:]
            embedded = embed.of_maps(a, b)  # of this level's maps alone
            if level:
                embedded = cost + embedded
                a, b = a + resized(found.source[-1], size), b + resized(found.target[-1], size)
            cost, a, b = embedded, a.flatten(2).transpose(1, 2), b.flatten(2).transpose(1, 2)
            for layer in layers:
                cost, a, b = layer(cost, a, b)
            found.source.append(a.transpose(1, 2).unflatten(2, size))
            found.target.append(b.transpose(1, 2).unflatten(2, size))
        return found._replace(cost=cost)

    def match(
        self, found: Aggregated, source_seen: Tensor | None = None, target_seen: Tensor | None = None
    ) -> tuple[Found, Found]:
        """Where every position of the source is in the target, and of the target in the source, on the finest grid.

        Args:
            found: what `forward` gave.
            source_seen, target_seen: bool (B, H, W), positions of the finest grid that may be found; None for all.
        """
        levels = [[level] for level in range(len(self.strides))]
        both = []
        for chosen in [[*range(len(self.strides))]] if self.fusion == "mean" else levels:
            source, target = (
                stacked([maps[level] for level in chosen], maps[-1].shape[2:]) for maps in (found.source, found.target)
            )
            there = soft_argmax(source, target, self.temperature, target_seen)
            both.append((there, soft_argmax(target, source, self.temperature, source_seen)))
        return self._best([there for there, _ in both], [back for _, back in both]), self._best(
            [back for _, back in both], [there for there, _ in both]
        )

    def _best(self, founds: Sequence[Found], backs: Sequence[Found]) -> Found:
        """At each position the result of the level of which it is surest."""
        if len(founds) == 1:
            return founds[0]
        places, peaks = (torch.stack(each) for each in zip(*founds))
        score = peaks
        if self.fusion == "cycle":
            score = -torch.stack([cycle_error(there.places, back.places) for there, back in zip(founds, backs)])
        best = score.argmax(0, keepdim=True)
        wide = best[:, :, None].expand(-1, -1, 2, -1, -1)
        return Found(places.gather(0, wide)[0], peaks.gather(0, best)[0])

    def _check(self, name: str, maps: Sequence[Tensor]) -> None:
        expected = [(c, *(s * side for side in self.cost_size)) for c, s in zip(self.in_channels, self.strides)]
        if [tuple(x.shape[1:]) for x in maps] != expected:
            raise ValueError(
                f"{name} has maps of {[tuple(x.shape[1:]) for x in maps]}, and must have {expected} (channels, rows, "
                "columns), the coarsest first: the network was built for this size."
            )


# options, and parameters without a backbone
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {"ufc_coponerf": (dict(), 12_519_792)}
