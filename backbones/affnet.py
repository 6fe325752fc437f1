"""AFFNet: a mask over frequencies, made from the spectrum itself, mixes all pixels of a map.

"Adaptive Frequency Filters As Efficient Global Token Mixers", ICCV 2023, arXiv 2307.14008;
https://github.com/microsoft/TokenMixers (MIT), whose weights load.

The adaptive frequency filter of width C, with F the transform over height and width and G blocks of C / G channels:

    X = F(x);   h = act(X W₁ + b₁);   m = shrink(h W₂ + b₂);   out = x + F⁻¹(m X)

W₁ and W₂ are complex and block-diagonal over the channels, b₁ and b₂ complex; every frequency is mapped by itself. act
and shrink(v) = sign(v) max(|v| - 0.01, 0) take real and imaginary parts apart, but products are those of complex
numbers: the real part of X W is Re X Re W - Im X Im W, the imaginary one Im X Re W + Re X Im W. No parameter knows the
size of the map. The filter is a circular convolution with a kernel of the map's size that depends on the map, by
O(N log N) for the transforms of N pixels and 8 C² / G products for each of about N / 2 frequencies.

Where paper and code differ, the code counts: an inverted residual with a skip of its own comes before the filter, and
one residual spans both. The settings of the authors' trainings could not be read. So what they leave open is an option:
`activation` (SiLU by default, as in networks of this family; the code's is ReLU) and `norm`. Numbers of parameters do
not tell which was trained.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import one_of
from ..kernels.dispatch import without_autocast
from ..registry import MIXERS
from .layers import ConvNorm, DropPath, Head, from_spectrum, make_divisible, to_spectrum
from .skeletons.backbone import Notes
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid, Stage
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------

# by name, from the number of channels
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "gelu": lambda _: nn.GELU(),
    "hard_swish": lambda _: nn.Hardswish(),
    "prelu": nn.PReLU,
    "relu": lambda _: nn.ReLU(),
    "silu": lambda _: nn.SiLU(),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@MIXERS.register_module()
class AdaptiveFrequencyFilter(nn.Module):
    """Adaptive frequency filter, see above. The identity is a part of it.

    Args:
        dim: channels C.
        groups: number G of blocks of W₁ and W₂; divides C.
        threshold: how much shrinking takes from real and imaginary parts of the mask, at least 0.
        activation: name of the activation, of `ACTIVATIONS`.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`, at any size. PyTorch transforms no bfloat16, and float16 on some devices
    alone: both are computed in float32, also under autocast.

    Raises:
        TypeError: x is of another dtype, such as a complex one or one of eight bits.
    """

    map_kind = "kernel"  # what a map of `attention_maps` belongs to

    def __init__(self, dim: int, groups: int = 8, threshold: float = 0.01, activation: str = "relu"):
        super().__init__()
        if groups < 1 or dim % groups:
            raise ValueError(f"AdaptiveFrequencyFilter: dim={dim} must be divisible by groups={groups}")
        if not threshold >= 0:
            raise ValueError(f"AdaptiveFrequencyFilter: threshold={threshold} must be at least 0")
        one_of("AdaptiveFrequencyFilter: activation", activation, tuple(ACTIVATIONS))
        self.threshold, width = threshold, dim // groups
        # first axis: real and imaginary part; then block, input, output
        self.w1, self.w2 = (nn.Parameter(0.02 * torch.randn(2, groups, width, width)) for _ in range(2))
        self.b1, self.b2 = (nn.Parameter(0.02 * torch.randn(2, groups, width)) for _ in range(2))
        # of real and imaginary parts: slopes that are learned differ
        self.activations = nn.ModuleList(ACTIVATIONS[activation](1) for _ in range(2))

    def mask(self, spectrum: Tensor) -> Tensor:
        """What a spectrum (B, C, H, K) is multiplied by, of the same shape."""
        blocks = spectrum.unflatten(1, (self.w1.shape[1], -1)).flatten(3)  # (B, G, C/G, H · K)
        parts = torch.view_as_real(_linear(blocks, self.w1, self.b1))
        if slopes := [slope.to(parts.dtype) for slope in self.activations.parameters()]:  # of PReLU
            parts = F.prelu(parts.flatten(0, 3), torch.cat(slopes)).view_as(parts)
        else:
            parts = self.activations[0](parts)
        mask = torch.view_as_real(_linear(torch.view_as_complex(parts), self.w2, self.b2))
        mask = torch.view_as_complex(F.softshrink(mask, self.threshold))
        return mask.flatten(1, 2).unflatten(2, spectrum.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            spectrum = to_spectrum(_wide(x))
            return x + from_spectrum(self.mask(spectrum) * spectrum, x.shape[-1]).to(x.dtype)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """What the pixel (row, column) `place` of the output takes of every pixel, by channel: (B, C, H, W), for this
        map, on which the kernel depends."""
        (row, column), (height, width) = place, x.shape[-2:]
        with without_autocast(x):
            kernel = from_spectrum(self.mask(to_spectrum(_wide(x))), width) * (height * width) ** -0.5
        maps = kernel.flip(2, 3).roll((row + 1, column + 1), (2, 3))
        maps[..., row, column] += 1
        return maps.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """A map in float32 at least."""
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"AdaptiveFrequencyFilter: x must be of one of {names}, got {x.dtype}")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _linear(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Complex linear maps of blocks of channels.

    Args:
        z: (B, G, I, N), complex.
        weight: (2, G, I, O), real and imaginary part.
        bias: (2, G, O), likewise.

    Returns:
        (B, G, O, N), complex.
    """
    # ONNX's exporter reshapes real numbers alone
    weight, bias = (torch.complex(*part.to(z.real.dtype)) for part in (weight.mT, bias.unsqueeze(-1)))
    return _product(weight, z) + bias


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product of complex matrices. Traced graphs hold those of real ones: neither ONNX nor PyTorch's compiler has
    others."""
    if not torch.compiler.is_compiling():
        return left @ right
    real = left.real @ right.real - left.imag @ right.imag
    return torch.complex(real, left.real @ right.imag + left.imag @ right.real)


# --- network ---------------------------------------------------------------------------------------------------------


class PixelNorm(nn.Module):
    """Norm over the channels of every pixel, (x - mean) / (deviation + eps), with a factor and a bias by channel.

    Layer norm adds eps to the variance. On pixels of little contrast the two differ.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, dim=1, correction=0, keepdim=True)
        x = (x - mean) / (deviation + self.eps)
        return torch.addcmul(self.bias.view(-1, 1, 1), x, self.weight.view(-1, 1, 1))


NORMS: dict[str, Callable[[int], nn.Module]] = {"map": partial(nn.GroupNorm, 1), "pixel": PixelNorm}


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depth-wise 3x3 convolution, 1x1 convolution, each with batch norm and the first
    two with an activation; x is added where the shape stays. Source: MobileNetV2, arXiv 1801.04381.

    Args:
        in_dim, dim: channels of the input and of the output.
        ratio: channels in between over `in_dim`; 1 leaves the first convolution out.
        activation: function channels -> activation.
        stride, dilation: of the 3x3 convolution.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        ratio: float,
        activation: Callable[[int], nn.Module],
        stride: int = 1,
        dilation: int = 1,
    ):
        super().__init__()
        hidden = make_divisible(in_dim * ratio)
        self.expand = nn.Identity() if ratio == 1 else nn.Sequential(ConvNorm(in_dim, hidden), activation(hidden))
        self.depthwise = nn.Sequential(
            ConvNorm(hidden, hidden, 3, stride, groups=hidden, dilation=dilation), activation(hidden)
        )
        self.reduce = ConvNorm(hidden, dim)
        self.adds = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class FilterBlock(nn.Module):
    """x + mixer(norm2(mlp(norm1(x)))): channels are mixed before pixels, and one residual spans both.

    Args:
        dim: channels.
        mlp, mixer: modules (B, C, H, W) -> (B, C, H, W).
        norm: function dim -> norm.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        mlp: nn.Module,
        mixer: nn.Module,
        norm: Callable[[int], nn.Module],
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1, self.mlp = norm(dim), mlp
        self.norm2, self.mixer = norm(dim), mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm2(self.mlp(self.norm1(x)))))


class FilterStage(Stage):
    """A transition x; blocks, norm and 1x1 convolution y of x; and where there is a fusion, a 1x1 convolution of both.

    Args:
        dim: channels.
        downsample: transition to the stage.
        blocks: modules (B, C, H, W) -> (B, C, H, W).
        norm: norm after the blocks.
        fusion: activation after the fusion; None for no fusion: the stage gives y.
    """

    def __init__(
        self,
        dim: int,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        fusion: nn.Module | None,
    ):
        super().__init__(downsample, blocks, norm)
        self.project = ConvNorm(dim, dim)
        self.fusion = None if fusion is None else nn.Sequential(ConvNorm(2 * dim, dim), fusion)

    def forward(self, x: Tensor, notes: Notes) -> Tensor:
        x = self.downsample(x)
        y = self.project(self.norm(self.blocks(x)))
        return y if self.fusion is None else self.fusion(torch.cat([x, y], dim=1))


class AFFNet(Pyramid):
    """AFFNet, at any size of the image: a stage of inverted residuals, then stages of adaptive frequency filters, each
    behind one inverted residual. The dense form gives the maps as they are, without norms.

    Args:
        dims, depths, drop_path_rate, **common: as of `Pyramid`. A stage begins with one inverted residual more, of the
            stride. Those of the first stage have no stochastic depth.
        mlp_ratio: hidden width of the inverted residuals inside the blocks; one number, or one for each stage.
        expansion: the same of those in the stem and at the beginning of stages, over the channels of their input.
        stem_dims: channels of the first convolution, and of the inverted residuals of the stem.
        stem_depth: number of inverted residuals in the stem.
        groups: number of blocks of the filters' weights; divides the channels of all stages with filters.
        fusion: whether a stage ends with a convolution of what its blocks read and gave; one, or one for each stage
            (the first one has none).
        activation: name of all activations, of `ACTIVATIONS`.
        norm: what the norms of the filters' blocks take mean and deviation of: "map" (all channels and pixels: group
            norm with one group) or "pixel" (its channels: `PixelNorm`).
        output_stride: limit of the strides: 16 or 8 for finer last maps. A stage beyond it keeps the size of the one
            before, and the inverted residuals that follow have holes instead.
        dropout: rate of dropout before the last layer.
    """

    unused = ("layer_scale",)
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights: batch norms follow

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 320),
        depths: Sequence[int] = (2, 2, 4, 3),
        *,
        mlp_ratio: float | Sequence[float] = (4.0, 2.0, 2.0, 2.0),
        expansion: float = 4.0,
        stem_dims: Sequence[int] = (16, 32),
        stem_depth: int = 1,
        groups: int = 8,
        fusion: bool | Sequence[bool] = True,
        activation: str = "silu",
        norm: str = "map",
        output_stride: int = 32,
        dropout: float = 0.0,
        **common,
    ):
        one_of("AFFNet: activation", activation, tuple(ACTIVATIONS))
        one_of("AFFNet: norm", norm, tuple(NORMS))
        if len(stem_dims) != 2 or stem_depth < 1:
            raise ValueError(f"AFFNet: stem_dims={stem_dims} must be two, stem_depth={stem_depth} at least 1")
        self.full_strides = [self.stem_stride * 2**i for i in range(len(dims))]
        if output_stride not in self.full_strides:
            raise ValueError(f"AFFNet: output_stride={output_stride} must be one of {self.full_strides}")
        self.expansion, self.groups, self.dropout = expansion, groups, dropout
        self.stem_dims, self.stem_depth = tuple(stem_dims), stem_depth
        self.fusion = per_stage("fusion", fusion, len(dims))
        self.activation, self.activate, self.norm = activation, ACTIVATIONS[activation], NORMS[norm]
        strides = [min(stride, output_stride) for stride in self.full_strides]
        super().__init__(dims, depths, strides=strides, mlp_ratio=mlp_ratio, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        first, dim = self.stem_dims
        widths = [first, *[dim] * self.stem_depth]
        return nn.Sequential(
            nn.Sequential(ConvNorm(in_channels, first, 3, stride=2), self.activate(first)),
            *(InvertedResidual(a, b, self.expansion, self.activate) for a, b in zip(widths, widths[1:])),
        )

    def make_stage(self, stage: int, rates: Sequence[float]) -> Stage:
        dim, before = self.dims[stage], [self.stem_dims[-1], *self.dims][stage]
        downsample = self.make_downsample(stage, before, dim)
        blocks = [self.make_block(stage, i, dim, rate) for i, rate in enumerate(rates)]
        if stage == 0:
            return Stage(downsample, blocks)
        fusion = self.activate(dim) if self.fusion[stage] else None
        return FilterStage(dim, downsample, blocks, self.norm(dim), fusion)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        stride = self.ratios[stage] if stage else 2  # the stem has the other 2
        missing = self.full_strides[stage - 1] // self.strides[stage - 1] if stage else 1
        return InvertedResidual(in_dim, dim, self.expansion, self.activate, stride, dilation=missing)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        mlp = InvertedResidual(dim, dim, self.mlp_ratio[stage], self.activate)
        if stage == 0:
            return mlp
        mixer = AdaptiveFrequencyFilter(dim, self.groups, activation=self.activation)
        return FilterBlock(dim, mlp, mixer, self.norm, drop_path)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        features = min(4 * dim, 960)
        before = nn.Sequential(ConvNorm(dim, features), self.activate(features))
        return Head(features, num_classes, before=before, after=nn.Dropout(self.dropout))


# The authors' images are only divided by 255, as their code says; that they are resized to 288 is the usage of networks
# of this family.
_variant = partial(Variant, size=256, mean=(0.0,) * 3, std=(255.0,) * 3, crop=256 / 288)
_wider = dict(stem_dims=(16, 64), fusion=(True, True, False, False))

VARIANTS = {
    "affnet_et": _variant(dict(dims=(48, 64, 104, 144), mlp_ratio=2.0, expansion=2.0), 1_436_264, 0.4, 73.0),
    "affnet_t": _variant(dict(dims=(48, 96, 160, 192)), 2_654_232, 0.8, 77.0),
    "affnet": _variant(dict(), 5_568_696, 1.5, 79.8),
    # in the authors' code alone
    "affnet_base": _variant(dict(dims=(128, 256, 512, 640), **_wider), 17_178_104),
    "affnet_large": _variant(dict(dims=(128, 256, 512, 768), depths=(5, 4, 18, 6), stem_depth=2, **_wider), 46_068_088),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

# of a stage of filters or an operator alone
STAGE_RULES: Rules = [
    (r"(^|\.)global_rep\.(\d+)\.(?=weight|bias)", r"\1norm."),
    (r"(^|\.)global_rep\.(\d+)\.", r"\1blocks.\2."),
    (r"\bconv_proj\.block\.", r"project."),
    (r"\bfusion\.block\.act\.", r"fusion.1."),
    (r"\bfusion\.block\.", r"fusion.0."),
    (r"\bfilter\.", r"mixer."),
    (r"\bblock\.exp_1x1\.block\.act\.", r"expand.1."),
    (r"\bblock\.exp_1x1\.block\.", r"expand.0."),
    (r"\bblock\.conv_3x3\.block\.act\.", r"depthwise.1."),
    (r"\bblock\.conv_3x3\.block\.", r"depthwise.0."),
    (r"\bblock\.red_1x1\.block\.", r"reduce."),
    (r"(^|mixer\.)act\.", r"\1activations.0."),
    (r"(^|mixer\.)act2\.", r"\1activations.1."),
]

RULES: Rules = [
    (r"^conv_1\.block\.act\.", r"stem.0.1."),
    (r"^conv_1\.block\.", r"stem.0.0."),
    (r"^layer_1\.(\d+)\.", lambda m: f"stem.{int(m[1]) + 1}."),
    (r"^layer_2\.0\.", r"stages.0.downsample."),
    (r"^layer_2\.(\d+)\.", lambda m: f"stages.0.blocks.{int(m[1]) - 1}."),
    (r"^layer_([345])\.0\.", lambda m: f"stages.{int(m[1]) - 2}.downsample."),
    (r"^layer_([345])\.1\.", lambda m: f"stages.{int(m[1]) - 2}."),
    *STAGE_RULES,
    (r"^conv_1x1_exp\.block\.act\.", r"head.before.1."),
    (r"^conv_1x1_exp\.block\.", r"head.before.0."),
    (r"^classifier\.fc\.", r"head.fc."),
]

register(AFFNet, VARIANTS, RULES)
