"""SpaRTAN: convolutions of two reaches mix pixels, complex waves mix channels; 3.8 million parameters.

"SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual Recognition", IJCNN 2025, arXiv 2507.10999;
https://github.com/henry-pay/SpaRTAN (Apache-2.0), whose weights load.

The spatial mixer (SMixer) works at half of its width C. CBG is a 3x3 convolution, batch norm and GELU; 2 stands for a
dilation of 2, SE for squeeze and excitation:

    x = proj_in(x)
    x = x + γ (x - mean of x)                         # the mean over all pixels
    out = proj_out([SE(CBG(x)), SE(CBG₂(conv₂(x)))])  # near and far

The channel mixer (CMixer) has K = ratio · C waves of phase θ and amplitude w:

    a = argmax over the C channels of x               # at every pixel
    θ, w = GELU(W₁ x), W₂ x
    f = w · θ + w[a] · θ[a]                           # the wave with the number of the strongest channel joins all
    f[2k] + i f[2k+1] = z[k] (f[2k] + i f[2k+1])      # z learned: it rotates and scales every pair
    out = proj_out(SE(CBG(f)))

In the first half of the stages the convolutions of the spatial mixer are dense, those of the channel mixer depth-wise.
In the second half the former are depth-wise, and the latter have C groups of `ratio` channels. Where two channels tie,
argmax takes the first one, and the output jumps there.

The authors publish the settings of one variant. For dense prediction they say to put the network into RT-DETR, and no
more: that the map of every stage is given as it is, without a norm, is inferred here.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import Block, ConvNorm, Head, Pointwise, SqueezeExcite, normal_by_fan_out
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

EPS = 1e-6  # of all norms

# --- operators -------------------------------------------------------------------------------------------------------


def _conv_norm(*args, **options) -> ConvNorm:
    """`ConvNorm`, with the eps of this network."""
    layer = ConvNorm(*args, **options)
    layer.norm.eps = EPS
    return layer


@MIXERS.register_module()
class SMixer(nn.Module):
    """Multi-order spatial mixing, see above: 3x3 convolutions without and with dilation, each with a gate.

    Args:
        dim: channels C, divisible by 8.
        groups: number of groups of the 3x3 convolutions, a divisor of C / 2; C / 2 by default (depth-wise).

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, groups: int | None = None):
        super().__init__()
        if dim < 8 or dim % 8:
            raise ValueError(f"SMixer: dim={dim} must be divisible by 8")
        half = dim // 2
        groups = half if groups is None else groups
        if groups < 1 or half % groups:
            raise ValueError(f"SMixer: groups={groups} must divide dim / 2 = {half}")
        self.proj_in = Pointwise(dim, half)
        self.gamma = nn.Parameter(torch.full((half,), 1e-5))
        self.near = _conv_norm(half, half, 3, groups=groups)
        self.widen = nn.Conv2d(half, half, 3, padding=2, dilation=2, groups=groups, bias=False)
        self.far = _conv_norm(half, half, 3, groups=groups, dilation=2)
        self.near_gate, self.far_gate = (SqueezeExcite(half, half // 4) for _ in range(2))
        self.proj_out = Pointwise(dim, dim)

    def recalibrate(self, x: Tensor) -> Tensor:
        """x + γ (x - mean), of maps (B, C / 2, H, W)."""
        gamma = self.gamma.to(x.dtype).view(-1, 1, 1)
        return torch.lerp(x, x.mean((2, 3), keepdim=True), -gamma)

    def forward(self, x: Tensor) -> Tensor:
        x = self.recalibrate(self.proj_in(x))
        near = self.near_gate(F.gelu(self.near(x)))
        far = self.far_gate(F.gelu(self.far(self.widen(x))))
        return self.proj_out(torch.cat([near, far], dim=1))


@MIXERS.register_module()
class CMixer(nn.Module):
    """Wave-based channel mixing, see above. It reads the pixels around by a 3x3 convolution, and all for a gate.

    Args:
        dim: channels C, at least 4.
        ratio: number K of waves over C, at least 1; K must be even.
        groups: number of groups of the 3x3 convolution, a divisor of K; C by default, which has to divide K then.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. The complex product is in float32 at least, also in half precision,
    whose dtypes have no complex numbers or poor ones.
    """

    def __init__(self, dim: int, ratio: float = 2.0, groups: int | None = None):
        super().__init__()
        width = int(dim * ratio)
        if dim < 4 or width < dim or width % 2:
            raise ValueError(
                f"CMixer: dim={dim} must be at least 4, and dim * ratio={width} an even number of at least dim; got "
                f"ratio={ratio}"
            )
        groups = dim if groups is None else groups
        if groups < 1 or width % groups:
            raise ValueError(f"CMixer: groups={groups} must divide dim * ratio={width}")
        self.theta, self.amplitude = Pointwise(dim, width), Pointwise(dim, width)
        self.factor = nn.Parameter(torch.empty(width // 2, 2))
        self.conv = _conv_norm(width, width, 3, groups=groups)
        self.gate = SqueezeExcite(width, dim // 4)
        self.proj_out = Pointwise(width, dim)
        self.reset_weights()

    def reset_weights(self) -> None:
        nn.init.normal_(self.factor)

    def waves(self, x: Tensor) -> Tensor:
        """f of x (B, C, H, W) before the complex product: (B, K, H, W)."""
        # pixels as rows: by their last dimension, PyTorch's gather and its gradient are several times as fast
        theta, amplitude, rows = (y.permute(0, 2, 3, 1) for y in (F.gelu(self.theta(x)), self.amplitude(x), x))
        strongest = rows.argmax(-1, keepdim=True)
        joining = amplitude.gather(-1, strongest) * theta.gather(-1, strongest)
        return torch.addcmul(joining, amplitude, theta).permute(0, 3, 1, 2)

    def rotate(self, f: Tensor) -> Tensor:
        """The complex product of f (B, K, H, W), pair by pair, in the dtype of f."""
        wide = torch.promote_types(f.dtype, torch.float32)  # nothing here is cast by autocast
        pairs = f.permute(0, 2, 3, 1).to(wide).unflatten(-1, (-1, 2)).contiguous()
        product = torch.view_as_complex(pairs) * torch.view_as_complex(self.factor.to(wide))
        return torch.view_as_real(product).flatten(-2).to(f.dtype).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(f"CMixer: x must be of floating point, got {x.dtype}")
        return self.proj_out(self.gate(F.gelu(self.conv(self.rotate(self.waves(x))))))


# --- network ---------------------------------------------------------------------------------------------------------


class SpaRTAN(Pyramid):
    """SpaRTAN. Transitions lose the last row or column of maps of odd sizes, as the authors' do; the stem does not.

    Args:
        dims, depths, drop_path_rate, layer_scale, **common: as of `Pyramid`. The rate of the last of n blocks is
            (n - 1) / n of `drop_path_rate`. A stage of depth 0 has no transition behind it: the next one has its size,
            and must have its channels.
        mlp_ratio: ratio of `CMixer`; one, or one for each stage, whole in the later half of the stages.
    """

    def __init__(
        self,
        dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (3, 3, 12, 2),
        *,
        mlp_ratio: float | Sequence[float] = (4, 4, 2, 2),
        layer_scale: float | Sequence[float | None] | None = 1e-5,
        **common,
    ):
        strides = [4]
        for i, (depth, dim, after) in enumerate(zip(depths, dims, dims[1:])):
            if not depth and dim != after:
                raise ValueError(
                    f"depths={tuple(depths)}: there is no transition behind stage {i} of depth 0, so the next one must "
                    f"have its channels, got dims={tuple(dims)}"
                )
            strides.append(strides[-1] * (2 if depth else 1))
        self.min_size = strides[-1] - 3  # then the last map has a pixel: the stem rounds up, transitions round down
        super().__init__(dims, depths, strides=strides, mlp_ratio=mlp_ratio, layer_scale=layer_scale, **common)
        layers = []  # names of what the authors number in one sequence
        for i, depth in enumerate(self.depths):
            if i and self.depths[i - 1]:
                layers.append(f"stages.{i}.downsample.0")
            layers += [f"stages.{i}.blocks.{n}" for n in range(depth)]
        numbers = [(rf"^layers\.{n}\.", f"{name}.") for n, name in enumerate(layers)]
        self.checkpoint_rules = [*numbers, *type(self).checkpoint_rules]

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        rows, columns = ((max(side, self.min_size) + 3) // 4 for side in (height, width))
        return [(rows // (stride // 4), columns // (stride // 4)) for stride in self.out_strides]

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        first, second = _conv_norm(in_channels, dim // 2, 3, stride=2), _conv_norm(dim // 2, dim, 3, stride=2)
        return nn.Sequential(first, nn.GELU(), second, nn.GELU())

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(_conv_norm(in_dim, dim, 2, stride=2), nn.SiLU())

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        early, ratio, count = stage < len(self.dims) // 2, self.mlp_ratio[stage], sum(self.depths)
        if not early and int(dim * ratio) % dim:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} must be whole in stage {stage}: one group for each channel")
        mixer = SMixer(dim, groups=1 if early else None)
        mlp = CMixer(dim, ratio, groups=int(dim * ratio) if early else None)
        norm = partial(nn.GroupNorm, 1, eps=EPS)
        rate = drop_path * (count - 1) / count  # the authors divide by the number of blocks
        return Block(dim, mixer, mlp, rate, self.layer_scale[stage], norm=norm)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes)

    def initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            normal_by_fan_out(module)
        else:
            super().initialize(module)


VARIANTS = {"spartan_t": Variant({}, 3_820_296, 1.0, 77.7, size=256, drop_path=0.1)}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

# of a block or an operator alone
BLOCK_RULES: Rules = [
    (r"(^|\.)smixer\.", r"\1mixer."),
    (r"(^|\.)cmixer\.", r"\1mlp."),
    (r"(^|\.)scale_(\d)$", r"\1scale\2.gamma"),
    (r"(^|\.)norm_(\d)\.", r"\1norm\2."),
    (r"(^|\.)h_conv\.", r"\1near."),
    (r"(^|\.)l_conv\.0\.conv\.", r"\1widen."),
    (r"(^|\.)l_conv\.1\.", r"\1far."),
    (r"(^|\.)h_attn\.", r"\1near_gate."),
    (r"(^|\.)l_attn\.", r"\1far_gate."),
    (r"(^|\.)attn\.", r"\1gate."),
    (r"\.squeeze\.", r".fc1."),
    (r"\.expand\.", r".fc2."),
    (r"(^|\.)complex$", r"\1factor"),
    (r"(^|\.)proj\.", r"\1amplitude."),
]

RULES: Rules = [
    (r"^conv\.0\.", r"stem.0."),
    (r"^conv\.1\.", r"stem.2."),
    (r"^linear\.", r"head.fc."),
    *BLOCK_RULES,
]

register(SpaRTAN, VARIANTS, RULES)
