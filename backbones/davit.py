"""DaViT: attention over windows of pixels alternates with attention over groups of channels.

"DaViT: Dual Attention Vision Transformers", ECCV 2022, arXiv 2204.03645; https://github.com/dingmyu/davit (MIT), whose
weights load, as do those of timm's port.

One unit of depth is a spatial block, then a channel block. With N pixels, width d = C / h of a head or group, and q, k,
v = linear(x), each (N, d) in every window and head, or in every group:

    spatial, in windows of w x w pixels:   y = softmax(q kᵀ / √d) v        cost 2 N w² C
    channel, over all pixels:              A = softmax(kᵀ v / √d)          (d, d), rows are channels of k
                                           y = q Aᵀ                        cost 2 N d C

Both are linear in N. Where paper and code differ, the code counts, for the weights' sake: in channel attention the keys
and values make the map and the queries are averaged by it; windows have no relative bias; the zeros that fill up the
last windows take part in their softmax.
"""

from torch import Tensor, nn

from ..registry import MIXERS
from .layers import DualBlock, Head, LayerNorm2d, Linear, Mlp, Patches, SpatialWindowAttention, heads_of
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class ChannelGroupAttention(nn.Module):
    """Self-attention between the channels of a group, each channel a token of N = H · W features, see above.

    The scale is that of d features although the logits are sums over N: they grow with the image.

    Args:
        dim: channels C.
        groups: number of groups; about C / 32 by default.
        channel_attn_v2: whether to be timm's operator of that name (the weights of Florence-2): the queries and keys
            make the map, which averages the values, and the scale is that of N: y = v softmax(qᵀ k / √N)ᵀ.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, groups: int | None = None, channel_attn_v2: bool = False, qkv_bias: bool = True):
        super().__init__()
        self.groups = heads_of("ChannelGroupAttention", dim, groups)
        self.channel_attn_v2 = channel_attn_v2
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def _map(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows (B, N, C) -> A (B, groups, d, d), and what it averages, (B, groups, N, d)."""
        qkv = self.qkv(rows).unflatten(-1, (3, self.groups, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.channel_attn_v2:
            q, k, v = v, q, k
        count, width = q.shape[-2:]
        scale = (count if self.channel_attn_v2 else width) ** -0.5
        return ((k * scale).transpose(-1, -2) @ v).softmax(-1), q

    def forward(self, x: Tensor) -> Tensor:
        attention, q = self._map(x.flatten(2).transpose(1, 2))
        y = (attention @ q.mT).mT  # several times as fast as q @ attention.mT, whose rows are strided
        return self.proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[-2:])


# --- network ---------------------------------------------------------------------------------------------------------


def _norm(dim: int) -> LayerNorm2d:
    return LayerNorm2d(dim, eps=1e-5)


class Stem(nn.Module):
    """7x7 convolution of stride 4, then layer norm."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 7, stride=4, padding=3)
        self.norm = _norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Downsample(nn.Module):
    """Layer norm, then a convolution of stride 2, 2x2 or (`overlapped`) 3x3. Odd sizes are rounded up: the zeros come
    after the norm."""

    def __init__(self, in_dim: int, dim: int, overlapped: bool):
        super().__init__()
        self.norm = _norm(in_dim)
        self.conv = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1) if overlapped else Patches(in_dim, dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class DaViT(Pyramid):
    """DaViT, at any size of the image.

    Args:
        dims, mlp_ratio, drop_path_rate, **common: as of `Pyramid`.
        depths: number of pairs of a spatial and a channel block in each stage.
        heads: number of heads of the spatial attention and of groups of the channel attention; one, or one for each
            stage; by default of 32 channels each.
        window: side of the windows.
        cpe_act: whether a GELU follows the depth-wise convolutions that tell positions.
        overlapped_patch: whether the convolutions between the stages are 3x3, not 2x2.
        channel_attn_v2: as of `ChannelGroupAttention`. With this, overlapped_patch and windows of 12 it is the image
            tower of Florence-2.
        qkv_bias: whether the projections to queries, keys and values have a bias.
    """

    unused = ("layer_scale",)
    blocks_per_depth = 2
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(
        self,
        dims=(96, 192, 384, 768),
        depths=(1, 1, 3, 1),
        heads=None,
        window: int = 7,
        cpe_act: bool = False,
        overlapped_patch: bool = False,
        channel_attn_v2: bool = False,
        qkv_bias: bool = True,
        **common,
    ):
        self.heads = per_stage("heads", heads, len(dims))
        self.window, self.cpe_act = window, cpe_act
        self.overlapped_patch, self.channel_attn_v2 = overlapped_patch, channel_attn_v2
        self.qkv_bias = qkv_bias
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return Stem(in_channels, dim)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return Downsample(in_dim, dim, self.overlapped_patch)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        heads = self.heads[stage]
        mixer: nn.Module
        if index % 2 == 0:
            mixer = SpatialWindowAttention(dim, heads, self.window, self.qkv_bias)
        else:
            mixer = ChannelGroupAttention(dim, heads, self.channel_attn_v2, self.qkv_bias)
        return DualBlock(dim, mixer, Mlp(dim, self.mlp_ratio[stage]), drop_path, self.cpe_act)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return _norm(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, after=nn.LayerNorm(dim))


def _size(width: int, *depths: int) -> dict:
    return dict(dims=(width, 2 * width, 4 * width, 8 * width), depths=depths)


VARIANTS = {
    "davit_tiny": Variant(_size(96, 1, 1, 3, 1), 28_360_168, 4.5, 82.8, drop_path=0.1, crop=0.95),
    "davit_small": Variant(_size(96, 1, 1, 9, 1), 49_745_896, 8.8, 84.2, drop_path=0.1, crop=0.95),
    "davit_base": Variant(_size(128, 1, 1, 9, 1), 87_954_408, 15.5, 84.6, drop_path=0.1, crop=0.95),
    "davit_large": Variant(_size(192, 1, 1, 9, 1) | dict(window=12), 196_811_752, 103.0, size=384, drop_path=0.1),
    "davit_huge": Variant(_size(256, 1, 1, 9, 1), 348_922_856, drop_path=0.1),
    "davit_giant": Variant(_size(384, 1, 1, 12, 3), 1_406_470_120, top1=90.4, drop_path=0.1),  # after 1.5 G pairs
}

# --- the authors' checkpoints, and timm's ----------------------------------------------------------------------------

# of a block or an operator alone
BLOCK_RULES: Rules = [
    (r"(^|\.)cpe(\.0|1)\.proj\.", r"\1position1.branch."),
    (r"(^|\.)cpe(\.1|2)\.proj\.", r"\1position2.branch."),
    (r"(^|\.)attn\.", r"\1mixer."),
]

RULES: Rules = [
    (r"^patch_embeds\.0\.", r"stem."),
    (r"^patch_embeds\.(\d)\.", r"stages.\1.downsample."),
    (r"^(stem|stages\.\d\.downsample)\.proj\.", r"\1.conv."),
    (r"^main_blocks\.(\d)\.", r"stages.\1.blocks."),
    (r"\.spatial_block\.", r".0."),  # of Florence-2
    (r"\.channel_block\.", r".1."),
    # block 0 (spatial) or 1 (channel) of pair j is our block 2j or 2j + 1
    (r"^(stages\.\d\.blocks)\.(\d+)\.([01])\.", lambda m: f"{m[1]}.{2 * int(m[2]) + int(m[3])}."),
    *BLOCK_RULES,
    (r"^norm(\d)\.", r"norms.\1."),
    (r"^norms\.(weight|bias)$", r"head.after.\1"),
    (r"^head\.norm\.", r"head.after."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(DaViT, VARIANTS, RULES)
