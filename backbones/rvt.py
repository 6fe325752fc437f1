"""RVT, with token-aware pooling: a robust vision transformer whose MLP convolves.

"Robustifying Token Attention for Vision Transformers", ICCV 2023, arXiv 2303.11126;
https://github.com/guoyongcs/TAPADL (MIT), which adds TAP (`mixers/tap.py`) and a loss (`layers/diversification.py`) to
RVT: "Towards Robust Vision Transformer", CVPR 2022, arXiv 2105.07926. With `num_scales=None` it is RVT without TAP.

A block is x + attention(LN(TAP(x))); x + mlp(LN(x)), where the MLP has 1x1, depth-wise 3x3 and 1x1 convolutions, each
with a batch norm, and GELU between. There is no table of positions and no class token. The attention of the plus
models (RVT*) multiplies its logits by a learned table,

    softmax((q kᵀ / √d) · sigmoid(mask)) v,   mask (heads, 196, 196),

of which maps of N < 196 pixels take the first N rows and columns, as the authors do. For larger maps, which theirs
refuse, the table is taken for one of pairs of places of a 14 x 14 map and resized, bilinearly; this is ours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import Attention, Block, ConvNorm, Head, LayerNorm2d
from .mixers.tap import TAP
from .skeletons.options import check_whole, per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class MaskedAttention(Attention):
    """`Attention` whose logits are multiplied by the sigmoid of a learned table, see above. Pixels alone take part.

    Args:
        dim, heads, qkv_bias: as of `Attention`.
        side: side of the square map that the table is for.
    """

    takes_tokens = False

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True, side: int = 14):
        super().__init__(dim, heads, qkv_bias)
        self.side = side
        self.mask = nn.Parameter(torch.empty(self.heads, side**2, side**2))
        self.reset_weights()

    def reset_weights(self) -> None:
        nn.init.normal_(self.mask)

    def gates(self, height: int, width: int) -> Tensor:
        """The factors of the logits, (heads, N, N) in (0, 1), for maps of N = height · width pixels."""
        mask: Tensor = self.mask
        pixels, side = height * width, self.side
        if pixels <= side**2:
            return mask[:, :pixels, :pixels].sigmoid()
        for _ in range(2):  # the keys, then the queries
            grid = mask.unflatten(2, (side, side))
            mask = F.interpolate(grid, (height, width), mode="bilinear").flatten(2).mT
        return mask.sigmoid()

    def _maps(self, q: Tensor, k: Tensor, height: int, width: int) -> Tensor:
        """(B, heads, N, N), of queries that may be fewer."""
        return ((q * q.shape[-1] ** -0.5) @ k.mT * self.gates(height, width).to(q.dtype)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        height, width = x.shape[-2:]
        q, k, v = self._split(x.flatten(2).transpose(1, 2))
        maps = self._maps(q, k, height, width)
        self.note(maps)
        rows = self.proj((maps.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return rows.transpose(1, 2).unflatten(2, (height, width))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W), sums of 1."""
        height, width = x.shape[-2:]
        q, k, _ = self._split(x.flatten(2).transpose(1, 2))
        return self._maps(q, k, height, width)[:, :, place[0] * width + place[1]].unflatten(-1, (height, width))


class ConvolvedMlp(nn.Module):
    """1x1, depth-wise 3x3 and 1x1 convolutions with biases, each with a batch norm, GELU between.

    Args:
        dim: channels C.
        ratio: hidden width over C.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, ratio: float = 4.0):
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = ConvNorm(dim, hidden, bias=True)
        self.dwconv = ConvNorm(hidden, hidden, 3, groups=hidden, bias=True)
        self.fc2 = ConvNorm(hidden, dim, bias=True)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.dwconv(self.activation(self.fc1(x)))))


# --- network ---------------------------------------------------------------------------------------------------------


class RVT(Pyramid):
    """RVT with TAP, for images of any size; those of less than 16 pixels are filled up. The first stage has stride 16,
    rounded as its three layers round, and every further one twice that of the one before.

    In the dense form, which the authors do not have, every map has a layer norm of its own.

    Args:
        dims, depths: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage.
        num_scales: number of averages of TAP, as of `TAP`; None for RVT without TAP.
        masked_blocks: number of blocks of the first stage, the first ones, with `MaskedAttention`.
        qkv_bias: whether queries, keys and values have a bias.
        mlp_ratio, drop_path_rate, layer_scale, plugins, **common: as of `Pyramid`.
    """

    unused = ("mixers", "strides")
    min_size = 16
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights
    stem_stride = 16

    def __init__(
        self,
        dims=(192, 384),
        depths=(10, 2),
        heads: int | Sequence[int] = (6, 12),
        num_scales: int | None = 4,
        masked_blocks: int = 0,
        qkv_bias: bool = True,
        **common,
    ):
        check_whole("masked_blocks", [masked_blocks], least=0)
        if masked_blocks > depths[0]:
            raise ValueError(f"masked_blocks={masked_blocks} must be from 0 to the first of depths={tuple(depths)}")
        self.heads = per_stage("heads", heads, len(dims))
        self.num_scales, self.masked_blocks, self.qkv_bias = num_scales, masked_blocks, qkv_bias
        if masked_blocks:
            why = "maps of more pixels than the table of a masked attention has take it another way"
            self.fixed_sizes = {suffix: dict(height=why, width=why) for suffix in (".onnx", ".pt2")}
        super().__init__(dims, depths, **common)

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        sides = [((max(side, self.min_size) - 3) // 2 // 2 + 1) // 4 for side in (height, width)]  # behind the stem
        ratios = [stride // self.strides[0] for stride in self.out_strides]
        return [((sides[0] - 1) // ratio + 1, (sides[1] - 1) // ratio + 1) for ratio in ratios]

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(in_channels, 32, 7, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(32, dim, 4, stride=4),
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        if dim % in_dim:
            raise ValueError(f"dims={self.dims}: {dim} must be a multiple of {in_dim}, for every channel makes as many")
        return nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, groups=in_dim)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        attention = MaskedAttention if stage == 0 and index < self.masked_blocks else Attention
        mixer, mlp = attention(dim, self.heads[stage], self.qkv_bias), ConvolvedMlp(dim, self.mlp_ratio[stage])
        block = Block(dim, mixer, mlp, drop_path, self.layer_scale[stage])
        if self.num_scales is not None:
            block.before = TAP(dim, self.num_scales)
        return block

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return LayerNorm2d(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, after=nn.LayerNorm(dim, eps=1e-6))


_tiny = dict(dims=(192, 384), depths=(10, 2), heads=(6, 12))
_small = dict(dims=(384,), depths=(12,), heads=6)
_base = dict(dims=(768,), depths=(12,), heads=12)

# Parameters and multiply-adds are counted. The published accuracy is said of a network of 92.1 million parameters,
# which the released class has not; it stands with the plus model. The drop path is DeiT's.
VARIANTS = {
    "tap_rvt_tiny": Variant(_tiny, 8_744_968, 1.30, drop_path=0.1),
    "tap_rvt_tiny_plus": Variant(_tiny | dict(masked_blocks=10), 11_049_928, 1.30, drop_path=0.1),
    "tap_rvt_small": Variant(_small, 22_316_104, 4.68, drop_path=0.1),
    "tap_rvt_small_plus": Variant(_small | dict(masked_blocks=5), 23_468_584, 4.68, drop_path=0.1),
    "tap_rvt_base": Variant(_base, 87_091_912, 17.6, drop_path=0.1),
    "tap_rvt_base_plus": Variant(_base | dict(masked_blocks=5), 89_396_872, 17.6, 83.1, drop_path=0.1),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

BLOCK_RULES: Rules = [
    (r"(^|\.)attn\.att_mask$", r"\1mixer.mask"),
    (r"(^|\.)attn\.", r"\1mixer."),
    (r"(^|\.)mlp\.(fc1|fc2|dwconv)\.", r"\1mlp.\2.conv."),
    (r"(^|\.)mlp\.bn1\.", r"\1mlp.fc1.norm."),
    (r"(^|\.)mlp\.bn2\.", r"\1mlp.dwconv.norm."),
    (r"(^|\.)mlp\.bn3\.", r"\1mlp.fc2.norm."),
    (r"(^|\.)dilation_predictor\.proj\.0\.", r"\1before.predict.conv."),
    (r"(^|\.)dilation_predictor\.proj\.1\.", r"\1before.predict.norm."),
    (r"(^|\.)dilation_predictor\.proj\.2\.", r"\1before.mix."),
]
RULES: Rules = [
    (r"^patch_embed\.proj\.", r"stem."),
    (r"^transformers\.(\d)\.", r"stages.\1."),
    (r"^pools\.(\d)\.conv\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^norm\.", r"head.after."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    *BLOCK_RULES,
]

register(RVT, VARIANTS, RULES)
