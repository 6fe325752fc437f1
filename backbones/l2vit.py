"""L2ViT: attention in windows alternates with linear attention over the whole image, enhanced by local concentration.

"The Linear Attention Resurrection in Vision Transformer", arXiv 2501.16182; https://github.com/ChuanyangZheng/L2ViT
(MIT), whose weights load.

Even blocks of a stage have softmax attention within windows (`SpatialWindowAttention`), odd ones linear attention. With
N pixels, width d = C / h of a head, and q, k = ReLU(linear(x)), v = linear(x), each (N, d) in every head:

    y_i = t q_i · (Σ_j k_jᵀ v_j) / max(q_i · Σ_j k_j, 100)          cost 4 N C² + 2 N C d

t is learned for each head, and begins at 1 / √d: the weights of a row sum to t, not to 1. The floor of 100 is a
constant that knows neither N nor d. Where an image has few pixels, many rows lie below it and their output shrinks; the
weights were trained so. Linear attention spreads its weights over the image. The local concentration behind it mixes
close pixels: two depth-wise 7x7 convolutions with GELU and batch norm between.

Where paper and code differ, the code counts, for the weights' sake: its commented form with a floor of 1 and a fixed t
is another function, and the zeros that fill up the last windows take part in their softmax. The authors' backbone for
mmdet has windows of 7 whatever was trained; here `window` counts in both forms.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.dispatch import without_autocast
from ..registry import MIXERS
from .layers import (
    ConvNorm,
    DualBlock,
    Head,
    LayerNorm2d,
    Linear,
    LocalBlock,
    Mlp,
    Patches,
    SpatialWindowAttention,
    depthwise,
    fill,
    heads_of,
)
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class LinearGlobalAttention(nn.Module):
    """Linear attention with ReLU features, a floor under the denominator and a learned factor, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Features and sums are in float32 at least: in float16 the sums over a few
    thousand pixels would overflow.
    """

    floor = 100.0

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads_of("LinearGlobalAttention", dim, heads)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.temperature = nn.Parameter(torch.full((self.heads, 1, 1), (dim // self.heads) ** -0.5))
        self.proj = Linear(dim, dim)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the projection of a map, each (B, heads, N, d)."""
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, self.heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def _features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the projections (B, heads, N, d): q and k without what is negative, in float32 at least, and the
        denominator of every row, (B, heads, N, 1)."""
        q, k = (F.relu(x.to(torch.promote_types(x.dtype, torch.float32))) for x in (q, k))
        return q, k, (q @ k.sum(2).unsqueeze(-1)).clamp(min=self.floor)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention alone, from the projections (B, heads, N, d)."""
        with without_autocast(v):
            q, k, denominator = self._features(q, k)
            summary = k.mT @ v.to(k.dtype) * self.temperature.to(k.dtype)  # (B, heads, d, d)
            return (q @ summary / denominator).to(v.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj(self.attend(*self._split(x)).transpose(1, 2).flatten(2))
        return y.transpose(1, 2).unflatten(2, x.shape[-2:])

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The weights that the pixel (row, column) `place` gives to every value, by head: (B, heads, H, W). Their sum
        is the factor of the head, or less where the floor counts."""
        i = place[0] * x.shape[-1] + place[1]
        q, k, denominator = self._features(*self._split(x)[:2])
        weights = k @ q[:, :, i, :, None] / denominator[:, :, i, None] * self.temperature
        return weights.squeeze(-1).unflatten(-1, x.shape[-2:])


@MIXERS.register_module()
class LocalConcentration(nn.Module):
    """Depth-wise 7x7 convolution, GELU, batch norm, depth-wise 7x7 convolution.

    Args:
        dim: channels C.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = depthwise(dim, 7)
        self.activation = nn.GELU()
        self.norm = nn.BatchNorm2d(dim)
        self.conv2 = depthwise(dim, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm(self.activation(self.conv1(x))))


# --- network ---------------------------------------------------------------------------------------------------------


def _norm(dim: int) -> LayerNorm2d:
    return LayerNorm2d(dim, eps=1e-5)


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2 with batch norms, ReLU between, then layer norm. The image is filled up to a
    multiple of 4: with the zeros only around each convolution, the last row and column would be others."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__(
            ConvNorm(in_channels, dim // 2, 3, stride=2, bias=True),
            nn.ReLU(),
            ConvNorm(dim // 2, dim, 3, stride=2, bias=True),
            _norm(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(fill(x, 4))


class L2ViT(Pyramid):
    """L2ViT, at any size of the image.

    Args:
        dims, depths, mlp_ratio, drop_path_rate, **common: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage; by default of 32 channels each.
        window: side of the windows.
        qkv_bias: whether the projections to queries, keys and values have a bias, in both kinds of attention.
    """

    unused = ("layer_scale",)

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: int | Sequence[int] | None = None,
        window: int = 7,
        qkv_bias: bool = True,
        **common,
    ):
        self.heads = per_stage("heads", heads, len(dims))
        self.window, self.qkv_bias = window, qkv_bias
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return Stem(in_channels, dim)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(_norm(in_dim), Patches(in_dim, dim, 2))  # odd sizes are filled up behind the norm

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        heads, mlp = self.heads[stage], Mlp(dim, self.mlp_ratio[stage])
        if index % 2 == 0:
            return DualBlock(dim, SpatialWindowAttention(dim, heads, self.window, self.qkv_bias), mlp, drop_path)
        mixer = LinearGlobalAttention(dim, heads, self.qkv_bias)
        return LocalBlock(dim, mixer, LocalConcentration(dim), mlp, drop_path, _norm)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return _norm(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, before=_norm(dim))


_base = dict(dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2))

VARIANTS = {
    "l2vit_tiny": Variant({}, 28_596_781, 4.7, 83.1, drop_path=0.1),
    "l2vit_small": Variant(dict(depths=(2, 2, 18, 2)), 50_199_157, 9.0, 84.1, drop_path=0.3),
    "l2vit_base": Variant(_base, 88_577_188, 15.9, 84.4, drop_path=0.3),
    # after ImageNet-22k; tested on images that were resized to 384 x 384, whatever their shape
    "l2vit_base_384": Variant(_base | dict(window=12), 88_577_188, 47.5, 87.0, size=384, drop_path=0.2, crop=1.0),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

# of a block or an operator alone
BLOCK_RULES: Rules = [
    (r"(^|\.)cpe\.0\.proj\.", r"\1position1.branch."),
    (r"(^|\.)cpe\.1\.proj\.", r"\1position2.branch."),
    (r"(^|\.)attn\.", r"\1mixer."),
    (r"(^|\.)local_mp\.", r"\1local.branch.1."),
    (r"(^|\.)bn\.", r"\1norm."),
]

RULES: Rules = [
    (r"^downsample_layers\.0\.proj\.proj\.0\.", r"stem.0.conv."),
    (r"^downsample_layers\.0\.proj\.proj\.1\.", r"stem.0.norm."),
    (r"^downsample_layers\.0\.proj\.proj\.3\.", r"stem.2.conv."),
    (r"^downsample_layers\.0\.proj\.proj\.4\.", r"stem.2.norm."),
    (r"^downsample_layers\.0\.norm\.", r"stem.3."),
    (r"^downsample_layers\.(\d)\.norm\.", r"stages.\1.downsample.0."),
    (r"^downsample_layers\.(\d)\.proj\.", r"stages.\1.downsample.1."),
    (r"^stages\.(\d)\.(\d+)\.norm3\.", r"stages.\1.\2.local.branch.0."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    *BLOCK_RULES,
    (r"^norm(\d)\.", r"norms.\1."),
    (r"^norm\.", r"head.before."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(L2ViT, VARIANTS, RULES)
