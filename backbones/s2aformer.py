"""S2AFormer: attention with one channel of queries and keys in a head, to the keys and values of a reduced map.

"S2AFormer: Strip Self-Attention for Efficient Vision Transformer", arXiv 2505.22195, IEEE Transactions on Image
Processing 2025. No code and no weights of the authors were found.

Strip self-attention (SSA), for each of h heads. A map of N pixels and C channels is reduced to M = ⌈H/r⌉ ⌈W/r⌉ pixels,
and queries and keys are compressed to d channels of a head, values (C / h channels of it) are not:

    x' = norm(depth-wise r x r convolution of stride r(x))        x' = x for r = 1
    q = linear(x), k = linear(x'), v = linear(x')
    y = linear(softmax(q kᵀ / √d) v)                              cost N M (h d + C), and the projections

With d = 1 the logits of a head have rank 1. The block (`LocalBlock`) has four branches, each added to what it reads: a
depth-wise 3x3 convolution, SSA, local interaction (LIM), and an MLP, the last three behind a norm.

This is a reading of the paper, of which its abstract and summaries by others were at hand:

- from the abstract: keys and values are reduced in space, queries and keys are compressed in channels;
- from the summaries: the reduction is a depth-wise convolution, the stem has three 3x3 convolutions, and the block has
  the four branches in this order;
- inferred, and therefore options: d = 1 (`key_dim`), after the name and the strips of the authors' SCASeg (arXiv
  2411.17061); the norm behind the reduction (`sr_norm`); all of LIM (`local`); the hidden width of the MLP
  (`mlp_ratio`); and the sizes of the variants, whose names are ours, too;
- chosen by us: the norms of stem, embeddings and outputs, the depth-wise convolution's 3x3, the head, stochastic depth,
  the initial weights.

Nothing that was published of the authors' networks holds for these.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import (
    ConvNorm,
    Head,
    LayerNorm2d,
    Linear,
    LocalBlock,
    Mlp,
    Pointwise,
    conv_stem,
    depthwise,
    fill,
    heads_of,
)
from .skeletons.options import is_whole, per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------

WRITTEN_UP_TO = 2**22  # attention weights; beyond, their memory costs a CPU more than the zeros of fused attention


def narrow_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q kᵀ) v with queries and keys that may be narrower than the values.

    Fused attention wants one width of all three, so queries and keys are filled up with zeros. On a CPU, weights that
    are few are written out instead, which is faster, above all with a backward.

    Args:
        q, k, v: (B, heads, N, d), (B, heads, M, d), (B, heads, M, c).
        scale: factor of the logits.

    Returns:
        (B, heads, N, c).
    """
    traced = torch.compiler.is_compiling()  # then sizes may be free, and a branch would fix them
    if not (traced or q.is_cuda) and q.shape[:3].numel() * k.shape[2] <= WRITTEN_UP_TO:
        return (q * scale @ k.mT).softmax(-1) @ v
    missing = max(0, v.shape[-1] - q.shape[-1])
    q, k = F.pad(q, (0, missing)), F.pad(k, (0, missing))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


@MIXERS.register_module()
class StripSelfAttention(nn.Module):
    """Attention to a reduced map by few channels, see above.

    Args:
        dim: channels C.
        heads: number of attention heads h; about C / 32 by default.
        sr_ratio: side r in pixels of the squares that become one key and value; 1 for no reduction. Maps are filled up
            with zeros to whole squares. On a map that is smaller than one, there is a single key, and every pixel gets
            the same values.
        key_dim: channels d of the queries and keys of a head. The strips of one channel are inferred.
        sr_norm: whether a layer norm follows the reduction, which is inferred.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, heads: int | None = None, sr_ratio: int = 8, key_dim: int = 1, sr_norm: bool = True):
        super().__init__()
        self.heads = heads_of("StripSelfAttention", dim, heads)
        for name, value in (("sr_ratio", sr_ratio), ("key_dim", key_dim)):
            if not is_whole(value) or value < 1:
                raise ValueError(f"StripSelfAttention: {name}={value!r} must be a whole number of at least 1")
        self.sr_ratio, self.scale = sr_ratio, key_dim**-0.5
        self.reduce: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if sr_ratio > 1:
            self.reduce = nn.Conv2d(dim, dim, sr_ratio, sr_ratio, groups=dim)
            self.norm = LayerNorm2d(dim) if sr_norm else self.norm
        self.q, self.k = Linear(dim, self.heads * key_dim), Linear(dim, self.heads * key_dim)
        self.v = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, h, N, d), k (B, h, M, d) and v (B, h, M, C / h) of a map."""
        reduced = self.norm(self.reduce(fill(x, self.sr_ratio)))
        rows, few = x.flatten(2).mT, reduced.flatten(2).mT
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(rows), self.k(few), self.v(few)))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        rows = narrow_attention(*self._split(x), self.scale).transpose(1, 2).flatten(2)
        return self.proj(rows).mT.unflatten(2, x.shape[-2:])

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, h, H, W), sums of 1. The weight of a
        square is spread evenly over its pixels."""
        q, k, _ = self._split(x)
        logits = k @ q[:, :, place[0] * x.shape[-1] + place[1], :, None] * self.scale
        rows, columns = (  # heights and widths of the squares, of which the last ones may lie outside in part
            torch.tensor([min(self.sr_ratio, side - i) for i in range(0, side, self.sr_ratio)], device=x.device)
            for side in x.shape[-2:]
        )
        weights = logits.squeeze(-1).softmax(-1).unflatten(-1, (len(rows), len(columns))) / (rows[:, None] * columns)
        return weights.repeat_interleave(rows, 2).repeat_interleave(columns, 3)


@MIXERS.register_module()
class LocalInteraction(nn.Module):
    """LIM: pointwise convolution, GELU, depth-wise convolution, pointwise convolution.

    The summaries of the paper name the module and say what it is for (details at boundaries, robustness to rotations
    and translations), not what is in it: this form is ours.

    Args:
        dim: channels C.
        kernel_size: taps along an axis of the depth-wise convolution, odd.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, kernel_size: int = 3):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"LocalInteraction: kernel_size={kernel_size} must be odd, its middle is the pixel itself")
        self.pw1 = Pointwise(dim, dim)
        self.activation = nn.GELU()
        self.dw = depthwise(dim, kernel_size)
        self.pw2 = Pointwise(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.dw(self.activation(self.pw1(x))))


# --- network ---------------------------------------------------------------------------------------------------------


class S2AFormer(Pyramid):
    """S2AFormer by our reading of the paper, at any size of the image.

    Args:
        dims, depths, mlp_ratio, drop_path_rate, **common: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage; None for about 32 channels of a head.
        sr_ratios: `sr_ratio` of `StripSelfAttention`; one, or one for each stage.
        key_dim: channels of the queries and keys of a head; one number, or one for each stage.
        sr_norm: whether a layer norm follows the reduction.
        local: the module of local interaction: name of MIXERS, or dict(type=name, **options).
    """

    unused = ("layer_scale",)

    def __init__(
        self,
        dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: int | Sequence[int] | None = (1, 2, 4, 8),
        sr_ratios: int | Sequence[int] = (8, 4, 2, 1),
        key_dim: int | Sequence[int] = 1,
        sr_norm: bool = True,
        local: str | Mapping = "LocalInteraction",
        **common,
    ):
        stages = len(dims)
        self.heads, self.sr_ratios = per_stage("heads", heads, stages), per_stage("sr_ratios", sr_ratios, stages)
        self.key_dim, self.sr_norm = per_stage("key_dim", key_dim, stages), sr_norm
        if not (isinstance(local, str) or (isinstance(local, Mapping) and "type" in local)):
            raise ValueError(f"local={local!r} must be a name of MIXERS, or dict(type=name, **options)")
        self.local = dict(type=local) if isinstance(local, str) else dict(local)
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        """The three convolutions of the stem, and the patch embedding of the first stage."""
        return conv_stem(in_channels, dim)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return ConvNorm(in_dim, dim, 3, stride=2, bias=True)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        mixer = StripSelfAttention(dim, self.heads[stage], self.sr_ratios[stage], self.key_dim[stage], self.sr_norm)
        local = MIXERS.build({**self.local, "dim": dim})
        return LocalBlock(dim, mixer, local, Mlp(dim, self.mlp_ratio[stage]), drop_path)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, before=LayerNorm2d(dim))


# Sizes, names and drop paths are ours.
VARIANTS = {
    "s2aformer_tiny": Variant({}, 3_609_892, drop_path=0.05),
    "s2aformer_small": Variant(dict(dims=(48, 96, 192, 384), depths=(2, 2, 8, 2)), 8_772_004, drop_path=0.1),
}

# --- names of our records, as there are no checkpoints of the authors ------------------------------------------------

# of a block alone
BLOCK_RULES: Rules = [
    (r"(^|\.)conv\.", r"\1position1.branch."),
    (r"(^|\.)attn\.", r"\1mixer."),
    (r"(^|\.)norm2\.", r"\1local.branch.0."),
    (r"(^|\.)lim\.", r"\1local.branch.1."),
    (r"(^|\.)norm3\.", r"\1norm2."),
]

RULES: Rules = [
    *BLOCK_RULES,
    *((rf"^stem\.{3 * i}\.(\w+)$", rf"stem.{2 * i}.conv.\1") for i in range(3)),
    *((rf"^stem\.{3 * i + 1}\.(\w+)$", rf"stem.{2 * i}.norm.\1") for i in range(3)),
    (r"^embeds\.0\.0\.", r"stem.6.conv."),
    (r"^embeds\.0\.1\.", r"stem.6.norm."),
    (r"^embeds\.(\d)\.0\.", r"stages.\1.downsample.conv."),
    (r"^embeds\.(\d)\.1\.", r"stages.\1.downsample.norm."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^norm\.", r"head.before."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(S2AFormer, VARIANTS, RULES)
