"""OverLoCK: a coarse overview of the image guides a closer look, by convolutions whose kernels the context mixes.

"OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels", CVPR 2025, arXiv
2502.20087; https://github.com/LMMMEng/OverLoCK (Apache-2.0), whose weights load.

ContMix of width C with g heads makes two kernels for every pixel, of s x s and of k x k taps, from its affinity to the
49 regions of the context (g = 2 · `heads`, as the authors count them):

    q = CB(query)   K = CB(mean of the context over each of 7 x 7 regions)          # both of width C/2
    logits = W (K qᵀ / √(C/g)) + b                                                  # W: 49 -> s² + k², for all heads
    out = CB([AV(softmax(logits[:s²] + bias_s), v[:C/2]), AV(softmax(logits[s²:] + bias_k), v[C/2:])])

CB is a 1x1 convolution with batch norm, AV the average over the window that is clamped inside the map
(`attlas.kernels.neighborhood_aggregate`). W K is one small matrix for each head, which is made first: the affinities of
the pixels are never written down.

Where paper and code differ, the code counts: two kernels at once, each for half of the channels; the scale is that of
C/g features, twice as many as a head of q has. And the released classes for detection and segmentation are not the
classifier with norms at its outputs: the norm of level 1 stands on the path there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.neighborhood_aggregate import neighborhood_aggregate
from ..registry import MIXERS
from .layers import (
    Blocks,
    ConvNorm,
    DropPath,
    Head,
    LayerNorm2d,
    LayerScale,
    Linear2d,
    Residual,
    SqueezeExcite,
    depthwise,
    depthwise_norm,
    fuse_norm,
)
from .skeletons.backbone import FIXED_BY_WINDOWS, Notes
from .skeletons.pyramid import Pyramid, Stage
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------

REGIONS = 7  # in height and in width


@MIXERS.register_module()
class ContMix(nn.Module):
    """Convolution with a kernel for every pixel and head that the context mixes, see above.

    A map that is smaller than the large kernel is enlarged so that its shorter side is k (bilinear), and the result is
    averaged back.

    Args:
        dim: channels C, divisible by 4 · heads.
        heads: half of the number of heads g; by default C / 64, which gives heads of 16 channels, or the next smaller
            number that fits.
        kernel_size, small_kernel: sides k and s of the two kernels, odd.
        context_dim: channels of the context. With 0, the context is the map itself, and the values are CB(x).

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with a context, `forward(x (B, C + context_dim, H, W), value (B, C, H,
    W))`: the first C channels of x are the query features, the others the context, and v is `value`.
    """

    map_kind = "kernel"  # what a map of `attention_maps` belongs to

    def __init__(
        self, dim: int, heads: int | None = None, kernel_size: int = 13, small_kernel: int = 5, context_dim: int = 0
    ):
        super().__init__()
        if heads is None:
            heads = max([n for n in range(1, dim // 64 + 1) if dim % (4 * n) == 0], default=1)
        if heads < 1 or dim % (4 * heads):
            raise ValueError(
                f"ContMix: dim={dim} is not divisible by 4 · heads = {4 * heads}: two kernels, for half of the "
                "channels each, have 2 · heads heads"
            )
        for name, value in (("kernel_size", kernel_size), ("small_kernel", small_kernel)):
            if value < 1 or value % 2 == 0:
                raise ValueError(f"ContMix: {name}={value} must be odd, so that a kernel has a center")
        if small_kernel > kernel_size:
            raise ValueError(f"ContMix: small_kernel={small_kernel} must be at most kernel_size={kernel_size}")
        self.dim, self.context_dim = dim, context_dim
        self.heads, self.kernel_sizes = 2 * heads, (small_kernel, kernel_size)
        self.query = ConvNorm(dim, dim // 2)
        self.key = ConvNorm(context_dim or dim, dim // 2)
        self.value = nn.Identity() if context_dim else ConvNorm(dim, dim)
        self.taps = nn.Linear(REGIONS**2, sum(k**2 for k in self.kernel_sizes))
        self.biases = nn.ParameterList(torch.empty(self.heads, 2 * k - 1, 2 * k - 1) for k in self.kernel_sizes)
        self.proj = ConvNorm(dim, dim)
        self.reset_weights()

    def reset_weights(self) -> None:
        for bias in self.biases:
            if self.context_dim:
                nn.init.zeros_(bias)
            else:
                nn.init.trunc_normal_(bias, std=0.02)

    def logits(self, x: Tensor) -> Tensor:
        """Of the taps of both kernels of every pixel, without the biases of offsets: (B, H, W, g, s² + k²)."""
        context = x[:, self.dim :] if self.context_dim else x
        keys = self.key(F.adaptive_avg_pool2d(context, REGIONS)).flatten(2).unflatten(1, (self.heads, -1))
        taps = F.linear(keys * (self.dim // self.heads) ** -0.5, self.taps.weight)  # (B, g, C/2g, s² + k²)
        query = self.query(x[:, : self.dim]).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
        logits = torch.baddbmm(self.taps.bias, query.flatten(0, 1), taps.flatten(0, 1))
        return logits.unflatten(1, x.shape[-2:]).unflatten(0, (x.shape[0], -1)).permute(0, 2, 3, 1, 4)

    def aggregate(self, x: Tensor, value: Tensor) -> Tensor:
        """Both AV, of values (B, 2g n, H, W) for any n: the same shape."""
        size, smallest = (x.shape[-2], x.shape[-1]), self.kernel_sizes[-1]
        shorter = min(size)
        if shorter < smallest:
            # rounded as the authors do
            larger = [smallest if side == shorter else int(smallest / shorter * side) for side in size]
            x, value = (F.interpolate(y, larger, mode="bilinear", align_corners=False) for y in (x, value))
        logits = self.logits(x).split([k**2 for k in self.kernel_sizes], dim=-1)
        values = value.permute(0, 2, 3, 1).unflatten(-1, (2, self.heads, -1)).unbind(3)
        y = torch.cat(
            [
                neighborhood_aggregate(logit, v, k, bias).flatten(3)
                for logit, v, k, bias in zip(logits, values, self.kernel_sizes, self.biases)
            ],
            dim=-1,
        ).permute(0, 3, 1, 2)
        return y if shorter >= smallest else F.adaptive_avg_pool2d(y, size)

    def forward(self, x: Tensor, value: Tensor | None = None) -> Tensor:
        return self.proj(self.aggregate(x, self.value(x if value is None else value)))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The kernels of the pixel (row, column) `place`, the g small ones, then the g large: (B, 2g, H, W), sums of 1.

        The output is linear in the values, so that its gradient is the kernel, in whatever way it was made.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone()  # a tensor of inference mode may not be part of a graph
            value = x.new_zeros(len(x), 2 * self.heads, *x.shape[-2:], requires_grad=True)
            here = self.aggregate(x, value)[:, :, place[0], place[1]]
            return torch.autograd.grad(here.sum(), value)[0]


# Kernel sizes and dilations of the branches that stand beside a large depth-wise kernel while it is trained.
BRANCHES = {
    19: ((5, 1), (7, 1), (9, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


class DilatedReparam(nn.Module):
    """BN(Σ BN(depth-wise convolution)) of one large and several small, dilated kernels; one convolution when fused.

    Args:
        dim: channels.
        kernel_size: side of the large kernel, a key of `BRANCHES`.
        merged: whether a single depth-wise convolution with bias stands for the sum, as in the authors' merged files.

    Weights of the other form are an error when they are loaded: the large kernel alone would fit. Source: UniRepLKNet,
    arXiv 2311.15599.
    """

    def __init__(self, dim: int, kernel_size: int, merged: bool = False):
        super().__init__()
        if kernel_size not in BRANCHES:
            raise ValueError(f"kernel_size={kernel_size} has no branches; it may be one of {sorted(BRANCHES)}")
        self.conv = depthwise(dim, kernel_size) if merged else depthwise_norm(dim, kernel_size)
        branches = () if merged else BRANCHES[kernel_size]
        self.branches = nn.ModuleDict({f"{k}_{d}": ConvNorm(dim, dim, k, groups=dim, dilation=d) for k, d in branches})
        self.norm = nn.BatchNorm2d(dim)
        self.register_load_state_dict_pre_hook(_refuse_other_form)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        for branch in self.branches.values():
            y = y + branch(x)
        return self.norm(y)

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        conv: Any = self.conv  # it and the branches are plain convolutions by now
        branches: Any = self.branches
        middle = conv.kernel_size[0] // 2
        for branch in branches.values():
            step, reach = branch.dilation[0], branch.padding[0]  # reach: of its taps from the middle
            taps = slice(middle - reach, middle + reach + 1, step)
            conv.weight[:, :, taps, taps] += branch.weight
            conv.bias += branch.bias
        return fuse_norm(conv, self.norm)


def _refuse_other_form(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    merged = isinstance(module.conv, nn.Conv2d)
    of_other = ("conv.norm.weight",) if merged else ("conv.bias", "conv.conv.bias")
    if any(prefix + name in state for name in of_other):
        have, build = ("parallel", "without merged=True") if merged else ("merged", "with merged=True")
        raise ValueError(f"the weights have {have} kernels at {prefix.rstrip('.')}: build the network {build} for them")


class GlobalResponseNorm(nn.Module):
    """x (1 + γ N) + β, where N is the norm of a channel over the map, relative to the mean of the channels.

    Source: ConvNeXt V2, arXiv 2301.00808.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        # sums of squares over a map leave float16 easily
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True, dtype=wide)
        norm = norm / (norm.mean(1, keepdim=True) + 1e-6)
        factor = 1 + self.gamma.view(-1, 1, 1) * norm
        return x * factor.to(x.dtype) + self.beta.view(-1, 1, 1).to(x.dtype)


class Scale(LayerScale):
    """A learned factor and a summand for each channel."""

    def __init__(self, dim: int, initial: float = 1.0):
        super().__init__(dim, initial)
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.beta.view(-1, 1, 1)


class GrnMlp(nn.Module):
    """Linear, GELU, x + depth-wise 3x3(x), global response norm, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear2d(dim, hidden)
        self.activation = nn.GELU()
        self.position = Residual(depthwise(hidden, 3))
        self.grn = GlobalResponseNorm(hidden)
        self.fc2 = Linear2d(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.grn(self.position(self.activation(self.fc1(x)))))


def _squeeze_excite(dim: int) -> SqueezeExcite:
    return SqueezeExcite(dim, max(16, dim // 8), nn.GELU)


# --- blocks ----------------------------------------------------------------------------------------------------------


class RepBlock(nn.Module):
    """The block of the base and the overview network: a large static depth-wise kernel, then an MLP, on one branch.

    Args:
        dim: channels.
        kernel_size: side of the large kernel, a key of `BRANCHES`.
        drop_path: rate of stochastic depth.
        scaled: whether the identity has a factor and a summand for each channel.
        merged: as of `DilatedReparam`.
    """

    def __init__(self, dim: int, kernel_size: int, drop_path: float = 0.0, scaled: bool = False, merged: bool = False):
        super().__init__()
        self.position = Residual(depthwise(dim, 3))
        self.norm = LayerNorm2d(dim)
        self.reparam = DilatedReparam(dim, kernel_size, merged)
        self.se = _squeeze_excite(dim)
        self.mlp = GrnMlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)
        self.scale = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        return self.scale(x) + self.drop_path(self.mlp(self.se(self.reparam(self.norm(x)))))


class ContMixBlock(nn.Module):
    """ContMix beside a static kernel, gated, then an MLP; a block to put into any network.

        z = LN(x + depth-wise 3x3(x));   f = fusion(z)        # f = z without a context
        u = proj(SE(ContMix(z, f) + DilatedReparam(f)) · SiLU(CB(f)))

    Args:
        dim: channels C.
        heads, kernel_size, small_kernel: as of `ContMix`; the static kernel has kernel_size.
        context_dim: channels of a context that comes behind the C channels of x and goes through the block with them;
            0 for none.
        mlp_ratio: hidden width of the MLP over C.
        drop_path: rate of stochastic depth of both branches.
        merged: as of `DilatedReparam`.

    `forward(x (B, C + context_dim, H, W))` -> the same shape.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        kernel_size: int = 13,
        context_dim: int = 0,
        mlp_ratio: float = 3.0,
        drop_path: float = 0.0,
        merged: bool = False,
        small_kernel: int = 5,
    ):
        super().__init__()
        width = dim + context_dim
        self.position1 = Residual(depthwise(width, 3))
        self.norm1 = LayerNorm2d(width)
        self.fusion: nn.Module = nn.Identity()
        if context_dim:
            self.fusion = nn.Sequential(
                ConvNorm(width, width, 3, groups=width, bias=True),
                nn.GELU(),
                Linear2d(width, dim),
                GlobalResponseNorm(dim),
            )
        self.mixer = ContMix(dim, heads, kernel_size, small_kernel, context_dim)
        self.lepe = DilatedReparam(dim, kernel_size, merged)
        self.se = _squeeze_excite(dim)
        self.gate = nn.Sequential(ConvNorm(dim, dim), nn.SiLU())
        self.proj = nn.Sequential(nn.BatchNorm2d(dim), Linear2d(dim, width))
        self.scale1 = Scale(width)
        self.position2 = Residual(depthwise(width, 3))
        self.norm2 = LayerNorm2d(width)
        self.mlp = GrnMlp(width, int(dim * mlp_ratio))
        self.scale2 = Scale(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position1(x)
        z = self.norm1(x)
        f = self.fusion(z)
        u = self.proj(self.se(self.mixer(z, f) + self.lepe(f)) * self.gate(f))
        x = self.position2(self.scale1(x) + self.drop_path(u))
        return self.scale2(x) + self.drop_path(self.mlp(self.norm2(x)))


class FocusBlock(ContMixBlock):
    """A `ContMixBlock` whose context is mixed again, before each but the first block, with the one of the overview.

    Args:
        first: whether it is the first block, whose context is that of the overview.
        dim, heads, kernel_size, context_dim, **options: as of `ContMixBlock`.

    `forward(x (B, C, H, W), h, overview (B, context_dim, H, W)) -> (x, h)`.
    """

    def __init__(self, dim: int, heads: int, kernel_size: int, context_dim: int, first: bool, **options):
        super().__init__(dim, heads, kernel_size, context_dim, **options)
        self.scales = None if first else nn.ModuleList([Scale(context_dim), Scale(context_dim)])

    def forward(self, x: Tensor, h: Tensor, overview: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if self.scales is not None:
            h = self.scales[0](h) + self.scales[1](overview)
        z = super().forward(torch.cat([x, h], dim=1))
        return z[:, : x.shape[1]], z[:, x.shape[1] :]


class Transition(nn.Module):
    """Between the focus stages: half the height and width, of the features and of their context."""

    def __init__(self, in_dim: int, dim: int, context_dim: int):
        super().__init__()
        self.x = ConvNorm(in_dim, dim, 3, stride=2)
        self.h = ConvNorm(context_dim, context_dim, 3, stride=2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.x(x), self.h(h)


class NormWithOverview(LayerNorm2d):
    """LN(x) + Scale(linear(LN(o))) of a map x and the map o of the overview.

    Args:
        dim, overview_dim: channels of x and o.
    """

    def __init__(self, dim: int, overview_dim: int):
        super().__init__(dim)
        self.overview = nn.Sequential(LayerNorm2d(overview_dim), Linear2d(overview_dim, dim), Scale(dim, 1e-5))

    def forward(self, x: Tensor, o: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + self.overview(o)


# --- network ---------------------------------------------------------------------------------------------------------


class OverviewStage(Stage):
    """The third base stage, the overview of its map, and the first focus stage, which goes over that map again.

    Args:
        downsample, base: transition and blocks of the base stage.
        overview: stage of the overview network.
        overview_proj: layer that makes the context of the overview.
        blocks: blocks of the focus stage.

    `forward(x, notes)` gives the features and their context as one map, and notes "overview" (for the auxiliary head,
    too) and "context".
    """

    def __init__(
        self,
        downsample: nn.Module,
        base: Sequence[nn.Module],
        overview: Stage,
        overview_proj: nn.Module,
        blocks: Sequence[nn.Module],
    ):
        super().__init__(downsample, blocks)
        self.base, self.overview, self.overview_proj = Blocks(base), overview, overview_proj

    def forward(self, x: Tensor, notes: Notes) -> Tensor:
        x = self.base(self.downsample(x))
        overview = self.overview(x, notes)
        context = self.overview_proj(overview)
        notes |= dict(overview=overview, auxiliary=overview, context=context)
        h = larger = F.interpolate(context, x.shape[-2:], mode="bilinear", align_corners=False)
        for block in self.blocks:
            x, h = self.blocks.run(block, x, h, larger)
        return torch.cat([x, h], dim=1)


class FocusStage(Stage):
    """The second focus stage, behind a `Transition`; it reads the noted "context"."""

    def forward(self, x: Tensor, notes: Notes) -> Tensor:
        context = notes["context"]
        x, h = self.downsample(*x.split([x.shape[1] - context.shape[1], context.shape[1]], dim=1))
        for block in self.blocks:
            x, h = self.blocks.run(block, x, h, context)
        return torch.cat([x, h], dim=1)


class OverLoCK(Pyramid):
    """OverLoCK: a base network (stem, three stages), an overview network on it, and a focus network, which goes over
    the base network's last map again with the overview as context.

    The levels are the maps of the first two base stages and of the two focus stages, the latter with their contexts of
    dims[3] / 4 channels behind them. In the dense form the third base stage reads level 1 behind its norm (and the
    second reads level 0 before its own). While a classifier with an auxiliary head is trained, `forward` gives (logits,
    auxiliary logits), the latter from the overview alone.

    Args:
        dims: channels of the three base stages and of the overview; the focus stages have dims[2] and dims[3].
        depths: number of blocks of the base stages and of the overview.
        focus_depths: number of blocks of the focus stages.
        kernel_sizes: sides of the kernels of the base stages and of the overview; the focus stages have kernel_sizes[2]
            and [3].
        heads: `heads` of `ContMix` in the focus stages.
        features: width of the vector before the last layer.
        auxiliary: whether the classifier has the auxiliary head.
        overview_output: whether, in the dense form, the overview is added to the last output, as the authors do for
            detection (and not for segmentation).
        merged: whether the large static kernels are single ones from the start, for the authors' merged files
            ("..._reparam.pth"). They are for inference, so there is no auxiliary head then.
        small_kernel: side of the smaller kernel of `ContMix`.
        drop_path_rate: rate of stochastic depth of the last block of the focus network; it grows linearly over base,
            overview, focus.
        **common: of `Backbone`. Parts that no output needs are not built.
    """

    unused = ("mlp_ratio", "layer_scale", "plugins")  # the blocks have gates of their own
    norms_on_path = (1,)

    fixed_sizes = FIXED_BY_WINDOWS

    def __init__(
        self,
        dims: Sequence[int] = (56, 112, 256, 336),
        depths: Sequence[int] = (2, 2, 3, 2),
        focus_depths: Sequence[int] = (6, 2),
        kernel_sizes: Sequence[int] = (17, 15, 13, 7),
        heads: Sequence[int] = (4, 6),
        features: int = 1024,
        auxiliary: bool = True,
        overview_output: bool = False,
        merged: bool = False,
        small_kernel: int = 5,
        **common,
    ):
        for name, values, count in (
            ("dims", dims, 4),
            ("depths", depths, 4),
            ("kernel_sizes", kernel_sizes, 4),
            ("focus_depths", focus_depths, 2),
            ("heads", heads, 2),
        ):
            if len(values) != count:
                raise ValueError(f"{name} must have {count} entries, got {tuple(values)}")
        if merged:
            self.checkpoint_rules = [(r"\blk_origin\.", r"conv."), *type(self).checkpoint_rules]
        self.base_dims, self.base_depths, self.focus_depths = tuple(dims), tuple(depths), tuple(focus_depths)
        self.kernel_sizes, self.small_kernel, self.heads = tuple(kernel_sizes), small_kernel, tuple(heads)
        self.features, self.auxiliary, self.merged = features, auxiliary and not merged, merged
        self.overview_output = overview_output
        self.context_dim = dims[3] // 4
        channels = (*dims[:2], dims[2] + self.context_dim, dims[3] + self.context_dim)
        counts = (*depths[:2], depths[2] + depths[3] + focus_depths[0], focus_depths[1])
        super().__init__(channels, counts, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(in_channels, dim // 2, 3, stride=2),
            nn.GELU(),
            ConvNorm(dim // 2, dim // 2, 3),
            nn.GELU(),
            ConvNorm(dim // 2, dim, 3, stride=2),
            nn.GELU(),
            ConvNorm(dim, dim, 3),
        )

    def make_stage(self, stage: int, rates: Sequence[float]) -> Stage:
        each = iter(rates)
        if stage < 2:
            downsample = self._downsample(stage) if stage else nn.Identity()
            return Stage(downsample, self._base(stage, each))
        if stage == 2:
            base, overview = self._base(2, each), Stage(self._downsample(3), self._base(3, each))
            proj = Linear2d(self.base_dims[3], self.context_dim)
            return OverviewStage(self._downsample(2), base, overview, proj, self._focus(0, each))
        return FocusStage(Transition(self.base_dims[2], self.base_dims[3], self.context_dim), self._focus(1, each))

    def _downsample(self, stage: int) -> nn.Module:
        return ConvNorm(self.base_dims[stage - 1], self.base_dims[stage], 3, stride=2)

    def _base(self, stage: int, rates: Iterator[float]) -> list[nn.Module]:
        """Blocks of a base stage, or of the overview."""
        options = self.base_dims[stage], self.kernel_sizes[stage]
        return [RepBlock(*options, next(rates), stage >= 2, self.merged) for _ in range(self.base_depths[stage])]

    def _focus(self, stage: int, rates: Iterator[float]) -> list[nn.Module]:
        options = self.base_dims[2 + stage], self.heads[stage], self.kernel_sizes[2 + stage], self.context_dim
        more = dict(merged=self.merged, small_kernel=self.small_kernel)
        return [
            FocusBlock(*options, first=stage == i == 0, drop_path=next(rates), **more)
            for i in range(self.focus_depths[stage])
        ]

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        if stage == 3 and self.overview_output:
            return NormWithOverview(dim, self.base_dims[3])
        return LayerNorm2d(dim)

    def normed(self, level: int, x: Tensor, notes: Notes) -> Tensor:
        if level == 3 and self.overview_output and "3" in self.norms:
            return self.norms["3"](x, notes["overview"])
        return super().normed(level, x, notes)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        before = nn.Sequential(ConvNorm(dim, self.features), nn.SiLU())
        overview_dim = self.base_dims[3]
        auxiliary = Head(overview_dim, num_classes, before=nn.BatchNorm2d(overview_dim))
        return Head(self.features, num_classes, before, auxiliary=auxiliary if self.auxiliary and num_classes else None)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return super().group_matcher(coarse)
        with_previous = (99999,)
        return dict(
            stem=r"^stem",
            base=[
                (r"^stages\.([012])\.downsample", (0,)),
                (r"^stages\.([01])\.blocks\.(\d+)", None),
                (r"^stages\.(2)\.base\.(\d+)", None),
                (r"^norms\.(1)\.", with_previous),
            ],
            overview=[
                (r"^stages\.2\.overview\.downsample", (0,)),
                (r"^stages\.2\.overview\.blocks\.(\d+)", None),
                (r"^stages\.2\.overview_proj", with_previous),
            ],
            focus=[
                (r"^stages\.(3)\.downsample", (0,)),
                (r"^stages\.([23])\.blocks\.(\d+)", None),
                (r"^norms", with_previous),
            ],
        )


_S = dict(dims=(64, 128, 320, 512), depths=(6, 6, 8, 3), focus_depths=(16, 3), heads=(8, 16))
_T = dict(dims=(64, 128, 256, 512), depths=(4, 4, 6, 2), focus_depths=(12, 2), heads=(4, 8))
_B = dict(dims=(80, 160, 384, 576), depths=(8, 8, 10, 4), focus_depths=(20, 4), heads=(6, 9))

VARIANTS = {
    "overlock_xt": Variant(dict(), 17_307_272, 2.6, 82.7, drop_path=0.1, crop=0.925),
    "overlock_t": Variant(_T, 34_990_472, 5.5, 84.2, drop_path=0.15, crop=0.95),
    "overlock_s": Variant(_S, 58_309_772, 9.7, 84.8, drop_path=0.4, crop=0.95),
    "overlock_b": Variant(_B, 98_012_968, 16.7, 85.1, drop_path=0.5, crop=0.975),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

_MLP = {"0": "fc1", "2": "position.branch", "3": "grn", "4": "fc2"}
_REP = {"0": "norm", "1": "reparam", "2": "reparam.norm"} | {str(int(n) + 4): f"mlp.{p}" for n, p in _MLP.items()}


def _pair(pattern: str, new: str, first: int = 0) -> list[tuple[str, str]]:
    """Rules for a convolution and the norm behind it, which the authors number from `first`."""
    return [(rf"{pattern}\.{first}\.", rf"{new}.conv."), (rf"{pattern}\.{first + 1}\.", rf"{new}.norm.")]


RULES: Rules = [
    *(rule for n in range(4) for rule in _pair(r"^patch_embed1", f"stem.{2 * n}", first=3 * n)),
    *_pair(r"^patch_embed2", r"stages.1.downsample"),
    *_pair(r"^patch_embed3", r"stages.2.downsample"),
    *_pair(r"^patch_embed4", r"stages.2.overview.downsample"),
    *_pair(r"^patch_embedx\.([xh])_proj", r"stages.3.downsample.\1"),
    (r"^high_level_proj\.", r"stages.2.overview_proj."),
    (r"^aux_head\.0\.", r"head.auxiliary.before."),
    (r"^aux_head\.2\.", r"head.auxiliary.fc."),
    *_pair(r"^head", r"head.before.0"),
    (r"^head\.4\.", r"head.fc."),
    (r"^extra_norm\.([0-3])\.", r"norms.\1."),
    (r"^extra_norm\.4\.", r"norms.3.overview.0."),
    (r"^h_proj\.0\.", r"norms.3.overview.1."),
    (r"^h_proj\.1\.weight$", r"norms.3.overview.2.gamma"),
    (r"^h_proj\.1\.bias$", r"norms.3.overview.2.beta"),
    # blocks; those of the focus network also stand alone
    (r"\b(proj\.3|se_layer)\.proj\.1\.", r"se.fc1."),
    (r"\b(proj\.3|se_layer)\.proj\.3\.", r"se.fc2."),
    (r"^(blocks\d\.\d+)\.proj\.(\d)\.", lambda m: f"{m[1]}.{_REP[m[2]]}."),
    (r"^blocks([12])\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"^blocks3\.", r"stages.2.base."),
    (r"^blocks4\.", r"stages.2.overview.blocks."),
    (r"^sub_blocks([34])\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"\b(x_scale|h_scale|ls\d?)\.weight$", r"\1.gamma"),
    (r"\b(x_scale|h_scale|ls\d?)\.bias$", r"\1.beta"),
    (r"\bx_scale\.", r"scales.0."),
    (r"\bh_scale\.", r"scales.1."),
    (r"\bls(\d?)\.", r"scale\1."),
    (r"\bdwconv(\d?)\.", r"position\1.branch."),
    *_pair(r"\bfusion", r"fusion.0"),
    (r"\bfusion\.3\.", r"fusion.2."),
    (r"\bfusion\.4\.", r"fusion.3."),
    *_pair(r"\bweight_(query|value)", r"mixer.\1"),
    *_pair(r"\bweight_key", r"mixer.key", first=1),
    (r"\bweight_proj\.", r"mixer.taps."),
    (r"\brpb1$", r"mixer.biases.0"),
    (r"\brpb2$", r"mixer.biases.1"),
    *_pair(r"\b(?:dyconv|fusion)_proj", r"mixer.proj"),
    *_pair(r"\bgate", r"gate.0"),
    (r"\blepe\.0\.", r"lepe."),
    (r"\blepe\.1\.", r"lepe.norm."),
    (r"\bmlp\.([0-4])\.", lambda m: f"mlp.{_MLP[m[1]]}."),
    (r"\blk_origin\.", r"conv.conv."),
    (r"\borigin_bn\.", r"conv.norm."),
    (r"\bdil_conv_k(\d+)_(\d)\.", r"branches.\1_\2.conv."),
    (r"\bdil_bn_k(\d+)_(\d)\.", r"branches.\1_\2.norm."),
]

register(OverLoCK, VARIANTS, RULES)
