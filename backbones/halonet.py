"""HaloNet: residual networks whose 3x3 convolutions are self-attention in blocks with a halo.

"Scaling Local Self-Attention for Parameter Efficient Visual Backbones", CVPR 2021, arXiv 2103.12731. There is no
official code. The operator and the networks with weights are those of timm 1.0.31 (Apache-2.0; layers/halo_attn.py,
models/byoanet.py), whose weights load; H0 to H7 are our reading of the paper's table, and have its parameter counts.

With (y, x) the place of query i in its block of b x b pixels, (u, w) that of key j in the window of the block, whose
side is win = b + 2 halo, d the width of a head:

    out_i = Σ_j softmax_j(q_i·k_j / √d + q_i·Rh[u - y + win - 1] + q_i·Rw[w - x + win - 1]) v_j

Beyond the map k and v are zero but not masked. Where the paper is silent, timm counts, for the weights' sake: no output
projection; with a stride the places of queries count 0, 1, ..., without the stride.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.halo_attention import halo_attention
from ..registry import MIXERS
from .layers import (
    ConvNorm,
    DropPath,
    Head,
    Pointwise,
    SqueezeExcite,
    fill,
    heads_of,
    make_divisible,
    normal_by_fan_out,
)
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class HaloAttention(nn.Module):
    """Attention from blocks of pixels to the windows around them, see above.

    Args:
        dim: channels C.
        dim_out: channels of the output, those of the values of all heads; C by default.
        heads: number of attention heads.
        block_size: side b of the blocks.
        halo_size: reach of a window beyond its block.
        stride: 1 or 2. With 2 every second pixel has a query; where b is odd all have, and the output is averaged 2x2.
        key_dim: width d of the queries and keys of a head; that of the values by default (dim_out rounded to a
            multiple of 8).
        qkv_bias: whether queries, keys and values have a bias.
        avg_down: whether a stride of 2 is timm's mean over 2x2 pixels for every block: an odd last row or column is
            left out then.
        scale_position: whether the terms of place are divided by √d, too (timm's scale_pos_embed).

    `forward(x (B, C, H, W)) -> (B, dim_out, ⌈H / stride⌉, ⌈W / stride⌉)`, channels-last; with `avg_down` rounded down.
    Maps are filled up to whole blocks; keys and values of the filling are zero, as beyond the map.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        key_dim: int | None = None,
        qkv_bias: bool = False,
        avg_down: bool = False,
        scale_position: bool = False,
    ):
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        if block_size < 1 or halo_size < 0:
            raise ValueError(
                f"HaloAttention: block_size={block_size} must be at least 1, and halo_size={halo_size} at least 0"
            )
        if stride not in (1, 2):
            raise ValueError(f"HaloAttention: stride={stride} must be 1 or 2")
        self.heads = heads_of("HaloAttention", dim_out, heads)
        self.key_dim = make_divisible(dim_out) // heads if key_dim is None else key_dim
        self.block_size, self.halo_size, self.window = block_size, halo_size, block_size + 2 * halo_size
        self.scale_position = scale_position
        self.pool = stride == 2 and (avg_down or block_size % 2 == 1)
        self.avg_down = avg_down
        self.stride = 1 if self.pool else stride  # of the queries
        self.q = Pointwise(dim, heads * self.key_dim, self.stride, bias=qkv_bias)
        self.kv = Pointwise(dim, heads * self.key_dim + dim_out, bias=qkv_bias)  # of each head k, then v
        self.height_rel = nn.Parameter(torch.empty(2 * self.window - 1, self.key_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * self.window - 1, self.key_dim))
        self.reset_weights()

    def reset_weights(self) -> None:
        for projection in (self.q, self.kv):
            nn.init.trunc_normal_(projection.weight, std=projection.weight.shape[1] ** -0.5)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        for table in (self.height_rel, self.width_rel):
            nn.init.trunc_normal_(table, std=self.key_dim**-0.5)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, (B, rows, columns, heads, width), of whole blocks."""
        parts = self.q(fill(x, self.block_size)), fill(self.kv(x), self.block_size)
        q, kv = (part.permute(0, 2, 3, 1).unflatten(-1, (self.heads, -1)) for part in parts)
        return q, *kv.split([self.key_dim, kv.shape[-1] - self.key_dim], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (-(-size // self.stride) for size in x.shape[-2:])
        tables = self.height_rel, self.width_rel
        y = halo_attention(
            *self._project(x), *tables, self.block_size, self.halo_size, scale_position=self.scale_position
        )
        y = y[:, :rows, :columns].flatten(3).contiguous().permute(0, 3, 1, 2)
        return F.avg_pool2d(y, 2, ceil_mode=not self.avg_down, count_include_pad=False) if self.pool else y

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` of the input looks at the pixels, by head: (B, heads, H, W). With a
        stride, it shares its query with its neighbors. Zero outside the window; the sum is 1 less what goes to pixels
        beyond the map."""
        place = place[0] // self.stride, place[1] // self.stride
        q, k, _ = self._project(x)
        halo, window, side = self.halo_size, self.window, self.block_size // self.stride
        tops, places = zip(*((i // side * self.block_size, i % side) for i in place))  # of the window; in the block
        rows, columns = (slice(top, top + window) for top in tops)
        k = F.pad(k, (0, 0, 0, 0, halo, halo, halo, halo))
        q = q[:, place[0], place[1]]
        by_row, by_column = (
            q @ table[window - 1 - at : 2 * window - 1 - at].mT.to(q.dtype)
            for table, at in zip((self.height_rel, self.width_rel), places)
        )
        logits, scale = torch.einsum("bhd,buwhd->bhuw", q, k[:, rows, columns]), self.key_dim**-0.5
        position = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)
        logits = logits * scale + (position * scale if self.scale_position else position)
        maps = logits.new_zeros(len(x), self.heads, *k.shape[1:3])
        maps[:, :, rows, columns] = logits.flatten(2).softmax(-1).view_as(logits)
        return maps[:, :, halo : halo + x.shape[2], halo : halo + x.shape[3]]


# --- network ---------------------------------------------------------------------------------------------------------


class EfficientChannelAttention(nn.Module):
    """x times a gate for each channel that looks at the means of the channels beside it. Source: arXiv 1910.03151."""

    def __init__(self, dim: int):
        super().__init__()
        reach = int((math.log2(dim) + 1) / 2)
        size = max(3, reach + 1 - reach % 2)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.conv(x.mean((2, 3)).unsqueeze(1))).transpose(1, 2)
        return x * gate.unsqueeze(-1)


class Bottleneck(nn.Module):
    """activation(x + conv3(gate(mixer(conv1(x))))): 1x1 convolutions around a mixer, batch norms and activations.

    Args:
        in_dim, dim: channels of the input and of the output.
        hidden, mixed: channels that the mixer reads and gives.
        mixer: module from `hidden` to `mixed` channels, with the stride of the block.
        norm: module on what the mixer gives.
        shortcut: module on x; None for no shortcut.
        gate: module on the channels, before the last convolution.
        activation: class of the activations.
        linear: whether there is no activation at the end.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        hidden: int,
        mixed: int,
        mixer: nn.Module,
        norm: nn.Module,
        shortcut: nn.Module | None,
        gate: nn.Module,
        activation: Callable[[], nn.Module],
        linear: bool,
        drop_path: float,
    ):
        super().__init__()
        self.conv1 = ConvNorm(in_dim, hidden)
        self.mixer, self.norm, self.gate = mixer, norm, gate
        self.conv3 = ConvNorm(mixed, dim, weight=1.0 if shortcut is None else 0.0)
        self.shortcut = shortcut
        self.activation = activation()
        self.last = nn.Identity() if linear else activation()
        self.end: nn.Module = nn.Identity()  # of the branch: a plug-in
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.mixer(self.activation(self.conv1(x)))))
        y = self.drop_path(self.end(self.conv3(self.gate(y))))
        return self.last(y if self.shortcut is None else y + self.shortcut(x))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {  # behind norms, whose backward reads their input alone
    "relu": partial(nn.ReLU, inplace=True),
    "silu": nn.SiLU,
}


class HaloNet(Pyramid):
    """HaloNet. In the dense form it gives the maps as they are, without norms.

    Args:
        dims, depths, drop_path_rate, **common: as of `Pyramid`.
        ratio: hidden channels of a block over those of its output; one, or one for each stage.
        attends: numbers of the blocks that attend, for each stage (the others have a 3x3 convolution); None for all.
        heads: number of attention heads; one, or one for each stage.
        block_size, halo_size, qkv_bias: as of `HaloAttention`.
        value_ratio: channels of the values over the hidden ones.
        qk_ratio: channels of queries and keys, of all heads, over the hidden ones.
        key_dim: channels of the queries and keys of one head, in place of qk_ratio.
        group_size: channels of a group of the 3x3 convolutions; None for one group.
        gate: "se" or "eca", for `SqueezeExcite` or `EfficientChannelAttention` after the 3x3 convolutions, or None.
        se_ratio: hidden channels of "se" over its own.
        activation: "relu" or "silu".
        stem_dims, stem_kernel: channels of the convolutions of the stem, and side of their kernels.
        stem_pool: whether a maximum over 3x3 pixels has the second stride of two, and not the last convolution.
        features: width of the vector before the last layer, which a 1x1 convolution makes; None for no convolution.
        project_first: whether the first block of the first stage has a convolution as its shortcut even if the shape
            stays, as the others' first ones have.
        inverted: whether the blocks are those of RegNetZ: `ratio` is over the channels of the input, no activation at
            the end, no shortcut where the shape changes; and the second stride of two is that of the first stage, not
            of the stem.
    """

    unused = ("mlp_ratio", "layer_scale")

    fixed_sizes = dict.fromkeys(
        (".pt2", ".onnx"),
        dict.fromkeys(
            ("height", "width"), "torch.export takes many minutes over free maps that are filled up to whole blocks"
        ),
    )

    def __init__(
        self,
        dims=(64, 128, 256, 512),
        depths=(3, 3, 10, 3),
        ratio: float | Sequence[float] = 1.0,
        attends=None,
        heads=(4, 8, 8, 8),
        block_size: int = 8,
        halo_size: int = 3,
        value_ratio: float = 1.0,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        key_dim: int | None = None,
        group_size: int | None = None,
        gate: str | None = None,
        se_ratio: float = 1 / 16,
        activation: str = "relu",
        stem_dims=(64,),
        stem_kernel: int = 7,
        stem_pool: bool = True,
        features: int | None = None,
        project_first: bool = True,
        inverted: bool = False,
        **common,
    ):
        for name, given, known in (("gate", gate, (None, "se", "eca")), ("activation", activation, (*ACTIVATIONS,))):
            if given not in known:
                raise ValueError(f"HaloNet: {name}={given!r} must be one of {known}")
        self.ratio = per_stage("ratio", ratio, len(dims))
        attends = [range(depth) for depth in depths] if attends is None else attends
        self.attends = per_stage("attends", attends, len(dims))
        self.heads = per_stage("heads", heads, len(dims))
        self.in_dims = (stem_dims[-1], *dims)
        self.block_size, self.halo_size, self.qkv_bias = block_size, halo_size, qkv_bias
        self.value_ratio, self.qk_ratio, self.key_dim = value_ratio, qk_ratio, key_dim
        self.group_size, self.gate, self.se_ratio = group_size, gate, se_ratio
        self.activation = ACTIVATIONS[activation]
        self.stem_dims, self.stem_kernel, self.stem_pool = tuple(stem_dims), stem_kernel, stem_pool
        self.features, self.project_first, self.inverted = features, project_first, inverted
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        layers: list[nn.Module] = []
        strides = [2] + [1] * (len(self.stem_dims) - 1)
        if not (self.stem_pool or self.inverted):
            strides[-1] *= 2
        for (before, after), stride in zip(pairwise((in_channels, *self.stem_dims)), strides):
            layers += [ConvNorm(before, after, self.stem_kernel, stride), self.activation()]
        return nn.Sequential(*layers, *[nn.MaxPool2d(3, 2, 1)] * self.stem_pool)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Identity()  # which the first block does

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        in_dim = dim if index else self.in_dims[stage]
        stride = 2 if index == 0 and (stage or self.inverted) else 1
        hidden = make_divisible((in_dim if self.inverted else dim) * self.ratio[stage])
        mixed = hidden
        gate: nn.Module = nn.Identity()
        norm: nn.Module = nn.Identity()
        mixer: nn.Module
        if index in self.attends[stage]:
            mixed = int(hidden * self.value_ratio)
            heads = self.heads[stage]
            key_dim = self.key_dim or make_divisible(hidden * self.qk_ratio) // heads
            mixer = HaloAttention(hidden, mixed, heads, self.block_size, self.halo_size, stride, key_dim, self.qkv_bias)
            norm = nn.BatchNorm2d(mixed)
        else:
            mixer = ConvNorm(hidden, hidden, 3, stride, hidden // (self.group_size or hidden))
            if self.gate == "se":
                gate = SqueezeExcite(hidden, make_divisible(hidden * self.se_ratio, limit=0))
            elif self.gate == "eca":
                gate = EfficientChannelAttention(hidden)
        shortcut: nn.Module | None = nn.Identity()
        if in_dim != dim or stride != 1:
            shortcut = None if self.inverted else ConvNorm(in_dim, dim, 1, stride)
        elif index == 0 and self.project_first:
            shortcut = ConvNorm(in_dim, dim)
        return Bottleneck(
            in_dim, dim, hidden, mixed, mixer, norm, shortcut, gate, self.activation, self.inverted, drop_path
        )

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        if self.features is None:
            return Head(dim, num_classes)
        before = nn.Sequential(ConvNorm(dim, self.features), self.activation())
        return Head(self.features, num_classes, before=before)

    def initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            normal_by_fan_out(module)
        else:
            super().initialize(module)


def _paper(block: int, halo: int, values: float, outputs: float, depth: int, final: int | None = None) -> dict:
    """A row of the paper's table: b, r, rv, rb, l3, df."""
    return dict(
        dims=tuple(int(64 * 2**i * outputs) for i in range(4)),
        depths=(3, 3, depth, 3),
        ratio=1 / outputs,
        block_size=block,
        halo_size=halo,
        value_ratio=values,
        features=final,
    )


# bottlenecks of 256, 512, ... channels, most of them with convolutions
_resnet = dict(
    dims=(256, 512, 1024, 2048),
    ratio=0.25,
    heads=8,
    stem_dims=(24, 32, 64),
    stem_kernel=3,
)
_26 = _resnet | dict(depths=(2, 2, 2, 2), attends=((), (), (1,), (0, 1)), halo_size=2)
_33 = _resnet | dict(
    dims=(256, 512, 1024, 1536),
    depths=(2, 3, 3, 2),
    ratio=(0.25, 0.25, 0.25, 0.333),
    attends=((), (2,), (2,), (0, 1)),
    stem_pool=False,
    features=1280,
    activation="silu",
    gate="se",
)
_50 = _resnet | dict(depths=(3, 4, 6, 3), attends=((), (3,), (1, 3, 5), (1,)), heads=(8, 4, 8, 8), activation="silu")
_regnetz = dict(
    dims=(48, 96, 192, 288),
    depths=(2, 6, 12, 2),
    ratio=3.0,
    attends=((), (), (3, 7, 11), (0, 1)),
    heads=8,
    block_size=7,
    halo_size=2,
    qk_ratio=0.33,
    group_size=16,
    gate="se",
    se_ratio=0.25,
    activation="silu",
    stem_dims=(32,),
    stem_kernel=3,
    stem_pool=False,
    features=1536,
    inverted=True,
)

VARIANTS = {
    "halonet_h0": Variant(_paper(8, 3, 1.0, 0.5, 7), 5_502_248, 2.40, 77.9, size=256),
    "halonet_h1": Variant(_paper(8, 3, 1.0, 1.0, 10), 8_105_576, 3.04, 79.9, size=256),
    "halonet_h2": Variant(_paper(8, 3, 1.0, 1.25, 11), 9_405_608, 3.37, 80.4, size=256),
    "halonet_h3": Variant(_paper(10, 3, 1.0, 1.5, 12, 1024), 11_842_792, 6.30, 81.9, size=320),
    "halonet_h4": Variant(_paper(12, 2, 1.0, 3.0, 12, 1280), 19_103_464, 12.17, 83.3, size=384),
    "halonet_h5": Variant(_paper(14, 2, 2.5, 2.0, 23, 1536), 30_718_952, 32.61, 84.0, size=448),
    "halonet_h6": Variant(_paper(8, 4, 3.0, 2.75, 24, 1536), 43_458_280, 53.20, 84.4, size=512),
    "halonet_h7": Variant(_paper(10, 3, 4.0, 3.5, 26, 2048), 67_434_728, 119.64, 84.9, size=600),
    # timm's
    "halonet_h1_timm": Variant(dict(heads=8, project_first=False), 8_100_056, size=256, crop=0.95),
    "halonet26t": Variant(_26, 12_480_288, top1=79.13, size=256, crop=0.95),
    "sehalonet33ts": Variant(_33, 13_691_712, top1=80.99, size=256, crop=0.94),
    "halonet50ts": Variant(_50, 22_733_280, top1=81.70, size=256, crop=0.94),
    "eca_halonext26ts": Variant(
        _26 | dict(key_dim=16, group_size=16, gate="eca", activation="silu"),
        10_756_885,
        top1=79.50,
        size=256,
        crop=0.94,
    ),
    "haloregnetz_b": Variant(
        _regnetz, 11_680_072, top1=81.04, size=224, mean=(127.5,) * 3, std=(127.5,) * 3, crop=0.94
    ),
}

# --- timm's checkpoints ----------------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^stem\.conv(\d)\.", lambda m: f"stem.{2 * int(m[1]) - 2}."),
    (r"^stem\.(conv|bn)\.", r"stem.0.\1."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.conv([13])_1x1\.", r".conv\1."),
    (r"\.(conv2_kxk|self_attn)\.", r".mixer."),
    (r"(^|\.)pos_embed\.", r"\1"),
    (r"\.post_attn\.", r".norm."),
    (r"\.attn\.", r".gate."),
    (r"\.bn\.", r".norm."),
    (r"^final_conv\.", r"head.before.0."),
]

register(HaloNet, VARIANTS, RULES)
