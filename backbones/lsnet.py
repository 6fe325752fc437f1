"""LSNet: a large static kernel perceives, a small dynamic kernel aggregates; features begin at stride 8.

"LSNet: See Large, Focus Small", CVPR 2025, arXiv 2503.23135; https://github.com/jameslahm/lsnet (no licence found),
whose weights load.

LS convolution of width C with G channels to each kernel, CB = convolution and batch norm:

    w = GN(W₄ relu(CB₁ₓ₁(DW₇ₓ₇(relu(CB₁ₓ₁(x))))))     # perception: C/G kernels of 3x3 taps for every pixel
    out = x + BN(SKA(x, w))                           # aggregation: channel c uses kernel c mod C/G

The group norm has a group for each kernel. The channels that share a kernel are interleaved, as in the authors' code.

The attention of the last stage adds a learned bias for each offset (|Δy|, |Δx|), held for maps of r x r. On other maps:

- the classifier resizes the table of offsets (bicubic), as is usual;
- the dense form expands the table to a matrix of (r², r²) and resizes that as if it were an image. That mixes pixels of
  neighboring rows, but it is what the authors' detectors were trained with (r = 14).
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.small_kernel_aggregate import small_kernel_aggregate
from ..registry import MIXERS
from .layers import (
    ConvMlp,
    ConvNorm,
    DistilledHead,
    Head,
    Pointwise,
    Residual,
    SqueezeExcite,
    any_free,
    as_rows,
    depthwise_norm,
    heads_of,
    make_divisible,
)
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class LSConv(nn.Module):
    """Large-small convolution, see above. The identity is a part of it; its cost is linear in the pixels.

    Args:
        dim: channels C, even.
        groups: number G of channels that use one kernel.
        large_kernel, small_kernel: sides of the perceiving and the aggregating kernel, odd.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    map_kind = "kernel"  # what a map of `attention_maps` belongs to

    def __init__(self, dim: int, groups: int = 8, large_kernel: int = 7, small_kernel: int = 3):
        super().__init__()
        for name, value in (("large_kernel", large_kernel), ("small_kernel", small_kernel)):
            if value < 1 or value % 2 == 0:
                raise ValueError(f"LSConv: {name}={value} must be odd, so that a kernel has a center")
        if groups < 1 or dim % groups or dim % 2:
            raise ValueError(f"LSConv: dim={dim} must be even and divisible by groups={groups}")
        self.kernels, half, taps = dim // groups, dim // 2, small_kernel**2
        self.lkp = nn.Sequential(
            ConvNorm(dim, half),
            nn.ReLU(inplace=True),
            depthwise_norm(half, large_kernel),
            ConvNorm(half, half),
            nn.ReLU(inplace=True),
            Pointwise(half, taps * self.kernels),
            nn.GroupNorm(self.kernels, taps * self.kernels),
        )
        self.norm = nn.BatchNorm2d(dim)

    def weights(self, x: Tensor) -> Tensor:
        """The kernels of every pixel of maps (B, C, H, W): (B, C/G, k², H, W)."""
        return self.lkp(x).unflatten(1, (self.kernels, -1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(small_kernel_aggregate(x, self.weights(x)))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The magnitude of the taps around the pixel (row, column) `place`, by kernel: (B, C/G, H, W)."""
        kernels = self.weights(x)[..., place[0], place[1]].abs()
        side = math.isqrt(kernels.shape[-1])
        batch, height, width = len(x), *x.shape[-2:]
        maps = x.new_zeros(batch, self.kernels, height + side - 1, width + side - 1)
        maps[:, :, place[0] : place[0] + side, place[1] : place[1] + side] = kernels.unflatten(-1, (side, side))
        return maps[:, :, side // 2 : side // 2 + height, side // 2 : side // 2 + width]


class RepDW(nn.Module):
    """x + depth-wise 3x3(x) + depth-wise 1x1(x), each with a batch norm; one depth-wise 3x3 convolution when fused."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = depthwise_norm(dim, 3)
        self.conv1 = depthwise_norm(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv1(x) + x

    @torch.no_grad()
    def fused(self) -> nn.Module:
        self.conv.weight[:, 0, 1, 1] += self.conv1.weight[:, 0, 0, 0] + 1  # type: ignore[index, operator]
        self.conv.bias += self.conv1.bias  # type: ignore[operator]
        return self.conv


@MIXERS.register_module()
class LSNetAttention(nn.Module):
    """Attention with narrow queries and keys, a 3x3 depth-wise convolution on the queries, and a bias for each offset.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        key_dim: width of the queries and keys of a head.
        resolution: side r of the maps that the table of biases is for.
        resize_matrix: whether, on maps of another size, the matrix of biases is resized, and not the table (see above).

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. The last norm begins at zero, as for a residual branch.
    """

    no_weight_decay = ("attention_biases",)
    checkpoint_resize = {
        "attention_biases": lambda table, shape: resize_offsets(table, (math.isqrt(shape[1]), math.isqrt(shape[1])))
    }

    def __init__(
        self, dim: int, heads: int | None = None, key_dim: int = 16, resolution: int = 4, resize_matrix: bool = False
    ):
        super().__init__()
        self.heads = heads_of("LSNetAttention", dim, heads)
        self.resolution, self.resize_matrix = resolution, resize_matrix
        self.widths = [self.heads * key_dim, self.heads * key_dim, dim]
        self.qkv = ConvNorm(dim, sum(self.widths))
        self.dw = depthwise_norm(self.heads * key_dim)
        self.proj = ConvNorm(dim, dim, weight=0.0)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, resolution**2))

    def bias(self, height: int, width: int) -> Tensor:
        """What is added to the logits: (heads, N, N). Never kept: weights may be loaded at any time."""
        side = self.resolution
        table = self.attention_biases.to(torch.promote_types(self.attention_biases.dtype, torch.float32))
        fits = not any_free((height, width)) and (height, width) == (side, side)
        if not fits and not self.resize_matrix:
            return expand_offsets(resize_offsets(table, (height, width)), height, width)
        matrix = expand_offsets(table, side, side)
        if fits:
            return matrix
        return F.interpolate(matrix[None], (height * width, height * width), mode="bicubic")[0]

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> q, k, v (B, heads, N, d)."""
        q, k, v = self.qkv(x).split(self.widths, dim=1)
        heads = (y.flatten(2).unflatten(1, (self.heads, -1)) for y in (self.dw(q), k, v))
        return as_rows(*(y.transpose(-1, -2) for y in heads))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(x)
        rows = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(*x.shape[-2:]).to(q.dtype))
        rows = rows.transpose(1, 2).flatten(2)  # (B, N, C)
        return self.proj(F.relu(rows).transpose(1, 2).unflatten(2, x.shape[-2:]))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W), sums of 1."""
        height, width = x.shape[-2:]
        q, k, _ = self._split(x)
        here = place[0] * width + place[1]
        logits = (q[:, :, here, None] @ k.transpose(-1, -2)).squeeze(2) * q.shape[-1] ** -0.5
        return (logits + self.bias(height, width)[:, here]).softmax(-1).unflatten(-1, (height, width))


def expand_offsets(table: Tensor, height: int, width: int) -> Tensor:
    """Biases (heads, N, N) of all pairs of pixels, of a table (heads, height * width) by (|Δy|, |Δx|), row-major."""
    rows, columns = (torch.arange(size, device=table.device) for size in (height, width))
    table = table.unflatten(1, (height, width))[:, (rows[:, None] - rows).abs()]
    table = table[..., (columns[:, None] - columns).abs()]  # (heads, H, H, W, W)
    return table.transpose(2, 3).reshape(-1, height * width, height * width)


def resize_offsets(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table (heads, r²) of biases by offset for maps of another size: bicubic, (heads, height * width)."""
    side = math.isqrt(table.shape[1])
    return F.interpolate(table.unflatten(1, (side, side))[None], size, mode="bicubic")[0].flatten(1)


# --- network ---------------------------------------------------------------------------------------------------------


class LSNet(Pyramid):
    """LSNet: blocks of even number are `RepDW` with squeeze and excitation, the others `LSConv`, or attention in the
    last stage. Strides 8, 16, 32, 64; the dense form gives the maps as they are, without norms.

    Args:
        dims, depths, drop_path_rate, **common: as of `Pyramid`.
        heads, key_dim: as of `LSNetAttention`.
        resolution: side of the last map that the table of biases is for; by default 4 (images of 224) in a classifier
            and 14 in the dense form, where the table of a classifier's file is resized.
        distilled: whether the classifier has a second head, for the authors' weights that learnt from a teacher. The
            logits are averaged, also in training: hard distillation is not offered here (see `DistilledHead`).
    """

    unused = ("mlp_ratio", "layer_scale")
    stem_stride = 8
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights: norms follow

    def __init__(
        self,
        dims=(64, 128, 256, 384),
        depths=(0, 2, 8, 10),
        heads=4,
        key_dim=16,
        resolution=None,
        distilled=False,
        **common,
    ):
        self.heads, self.key_dim, self.resolution, self.distilled = heads, key_dim, resolution, distilled
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(in_channels, dim // 4, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 4, dim // 2, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 2, dim, 3, stride=2),
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(depthwise_norm(in_dim, stride=2), ConvNorm(in_dim, dim))

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        parts: dict[str, nn.Module] = {}
        if index % 2 == 0:
            parts["mixer"] = RepDW(dim)
            parts["se"] = SqueezeExcite(dim, make_divisible(dim / 4, limit=0))
        elif stage < len(self.dims) - 1:
            parts["mixer"] = LSConv(dim)
        else:
            dense = self.num_classes is None
            resolution = self.resolution or (14 if dense else 4)
            parts["mixer"] = Residual(LSNetAttention(dim, self.heads, self.key_dim, resolution, dense), drop_path)
        parts["mlp"] = Residual(ConvMlp(dim), drop_path)
        return nn.Sequential(OrderedDict(parts))

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        if self.distilled:
            return DistilledHead(dim, num_classes, after=nn.BatchNorm1d)
        return Head(dim, num_classes, after=nn.BatchNorm1d(dim))


_s = dict(dims=(96, 192, 320, 448), depths=(1, 2, 8, 10))
_b = dict(dims=(128, 256, 384, 512), depths=(4, 6, 8, 10))

VARIANTS = {
    "lsnet_t": Variant(dict(), 11_409_832, 0.3, 74.9),
    "lsnet_s": Variant(_s, 16_146_304, 0.5, 77.8),
    "lsnet_b": Variant(_b, 23_313_608, 1.3, 80.3),
    "lsnet_t_distill": Variant(dict(distilled=True), 11_795_600, 0.3, 76.1),
    "lsnet_s_distill": Variant(dict(_s, distilled=True), 16_596_200, 0.5, 79.0),
    "lsnet_b_distill": Variant(dict(_b, distilled=True), 23_827_632, 1.3, 81.6),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"attention_bias_idxs$", None),  # which expand_offsets computes
    (r"^patch_embed\.", r"stem."),
    (r"^blocks1\.", r"stages.0.blocks."),
    (r"^blocks([234])\.([01])\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.{m[2]}."),
    (r"^blocks([234])\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 2}."),
    (r"^head_dist\.", r"head.distilled."),
    (r"^(head.*)\.bn\.", r"\1.after."),
    (r"^(head.*)\.l\.", r"\1.fc."),
    (r"\blkp\.cv1\.", r"lkp.0."),
    (r"\blkp\.cv2\.", r"lkp.2."),
    (r"\blkp\.cv3\.", r"lkp.3."),
    (r"\blkp\.cv4\.", r"lkp.5."),
    (r"\blkp\.norm\.", r"lkp.6."),
    (r"\.ffn\.", r".mlp."),
    (r"\.m\.", r".branch."),
    (r"\.pw(\d)\.", r".fc\1."),
    (r"\bproj\.1\.", r"proj."),
    (r"\.c\.", r".conv."),
    (r"\bbn\.", r"norm."),
]

register(LSNet, VARIANTS, RULES)
