"""TiC: self-attention inside the window of a convolution.

"TiC: Exploring Vision Transformer in Convolution", arXiv 2310.04134; https://github.com/StriveZs/MSA-Conv (no licence
file). Only the operator was released, and nothing of the network, its two mechanisms and its weights: what is marked
*ours* below is a reconstruction from the abstract.

MSA-Conv with a kernel of κ_1 x κ_2 taps, odd numbers, and dilation δ: q, k, v = linear(x), and for every pixel i

    o_i = Σ_u A_iu v_{i + δu};   A_i = softmax_u(q_i·k_{i + δu} / √d),   u in the taps around 0
    y = ReLU(conv(o + x)),   a convolution with the same kernel and any stride, not dilated

Taps beyond the border stay in the softmax, with keys and values of zero: their logit is 0. With m of them, their part
is a factor of the attention among the others, whose divisor is exp(lse):

    o = o' exp(lse) / (exp(lse) + m) = o' sigmoid(lse - log m)

so `kernels.neighborhood_attention` with cut windows computes it, without an unfolded copy of keys and values, for maps
of any size. No table of positions exists. The release has one head; several are *ours*.

Two mechanisms enlarge what a pixel sees. In both the readings are *ours*:

- Multi-directional cyclic shift: the heads form four groups; keys and values of a group move by s pixels down, up, to
  the right, to the left, and come in again at the other end. Queries stay ("keys"). Or everything moves, and what was
  computed moves back ("map"): as the operator follows translations, that changes borders alone.
- Inter-pooling: in every second block keys and values are those of the map averaged over 2x2 pixels, so that a window
  covers twice the extent, around the query's own cell ("keys"). Or queries are averaged too, and the result is copied
  to the pixels of a cell ("map").

The body around them is *ours* too: a convolutional stem, four stages of pre-norm blocks, and between stages the
released operator with stride 2, behind a norm.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.neighborhood_attention import axis_windows, neighborhood_attention
from ..registry import MIXERS, MODELS
from .layers import Block, ConvNorm, Head, LayerNorm2d, Linear, Mlp, Pointwise, any_free, heads_of, linear
from .skeletons.backbone import FIXED_BY_WINDOWS
from .skeletons.options import is_whole, per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class MSAConv(nn.Module):
    """The attention of MSA-Conv with a linear layer in place of its convolution, for blocks that have an MLP, and with
    the two mechanisms of TiC, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        kernel_size: odd numbers of taps on the two axes; one number for both, or two.
        dilation: distance of neighboring taps in pixels; one number for both axes, or two.
        shift: pixels s of the cyclic shift, those of the averaged map where one is; None for half the window, 0
            for none. With fewer than four heads only some directions occur.
        shifted: what moves, "keys" (and values) or the whole "map".
        pooled: what is averaged over 2x2 pixels, "keys" (and values) or the whole "map"; None for nothing. The cells in
            the last row and column of an odd map have fewer pixels.
        border: whether taps beyond the border are zeros in the softmax ("zero", as released) or left out ("mask").
        dropout: rate of dropout of the weights in training. Beside it every tap is one product over the map, which
            needs more time.
        project: whether the linear layer is there.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Half types are summed in float32.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 1,
        shift: int | None = None,
        shifted: str = "keys",
        pooled: str | None = None,
        border: str = "zero",
        dropout: float = 0.0,
        project: bool = True,
    ):
        super().__init__()
        self.heads = heads_of("MSAConv", dim, heads)
        self.kernel_size, self.dilation = _pair("kernel_size", kernel_size), _pair("dilation", dilation)
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(f"MSAConv: kernel_size must be odd, got {kernel_size}")
        if shift is not None and (type(shift) is not int or shift < 0):
            raise ValueError(f"MSAConv: shift must be an integer of at least 0, or None, got {shift!r:.60}")
        _check_choices("MSAConv", shifted=shifted, pooled=pooled, border=border)
        if not 0 <= dropout < 1:
            raise ValueError(f"MSAConv: dropout must be in [0, 1), got {dropout}")
        # pixels from the middle of a window to its first and last taps
        self.reach = tuple(size // 2 * step for size, step in zip(self.kernel_size, self.dilation))
        self.shift = self.reach if shift is None else (shift, shift)
        self.shifted, self.pooled, self.border, self.dropout = shifted, pooled, border, dropout
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj(self._attention(x))
        if self.pooled == "map":  # the pixels of a cell are alike
            y = y.repeat_interleave(2, 1).repeat_interleave(2, 2)
        if self.pooled is not None:
            y = y[:, : x.shape[2], : x.shape[3]]
        return y.permute(0, 3, 1, 2)

    def _attention(self, x: Tensor) -> Tensor:
        """The attention (B, H', W', C) of a map (B, C, H, W): of every pixel, those that fill up cells included, or of
        every cell if the whole map is averaged."""
        q, k, v = self._split(x)
        y = self._attend(*(part.flatten(3, 4) for part in (q, k, v))).view(q.shape)
        if self.shifted == "map":
            y = self._roll(y, -1)
        if self.pooled == "keys":
            y = y.unflatten(3, (2, 2)).permute(0, 1, 3, 2, 4, 5, 6).flatten(1, 2).flatten(2, 3)
        return y.flatten(3)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> q, k, v (B, H', W', n, heads, d), all of one size: n = 4 are the pixels of a cell, else 1."""
        channels = x.shape[1]
        if self.pooled is not None:
            x = _even(x)
        rows = x.permute(0, 2, 3, 1)
        cells = rows if self.pooled is None else F.avg_pool2d(x, 2).permute(0, 2, 3, 1)
        if self.pooled == "keys":
            (of_q, of_kv), (q_bias, kv_bias) = (
                part.split((channels, 2 * channels)) for part in (self.qkv.weight, self.qkv.bias)
            )
            q, kv = linear(rows, of_q, q_bias), linear(cells, of_kv, kv_bias)
        else:
            q, kv = self.qkv(cells).split((channels, 2 * channels), -1)
        q, kv = q.unflatten(-1, (1, self.heads, -1)), kv.unflatten(-1, (2, self.heads, -1))
        if self.pooled == "keys":
            q = q.squeeze(3).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4, 5, 6).flatten(3, 4)
        kv = self._roll(kv, 1)
        if self.shifted == "map":
            q = self._roll(q, 1)
        k, v = (part.expand(-1, -1, -1, q.shape[3], -1, -1) for part in kv.split(1, 3))
        return q, k, v

    def _roll(self, x: Tensor, sign: int) -> Tensor:
        """The cyclic shift of (B, H', W', n, heads, d), or with sign = -1 its inverse."""
        down, right = self.shift
        if not (down or right):
            return x
        ways = ((down, 0), (-down, 0), (0, right), (0, -right))
        counts = [sum(4 * head // self.heads == way for head in range(self.heads)) for way in range(4)]
        groups = zip(x.split(counts, 4), ways, counts)
        return torch.cat([group.roll([sign * step for step in way], (1, 2)) for group, way, n in groups if n], 4)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Steps behind the projection, of (B, H, W, heads, d)."""
        if self.training and self.dropout:
            weights = F.dropout(self._weights(q, k), self.dropout)
            y = torch.zeros_like(v, dtype=weights.dtype)
            for weight, tap in zip(weights.unbind(-1), self._taps(v)):
                y = y + weight.unsqueeze(-1) * tap
            return y.to(v.dtype)
        y, lse = neighborhood_attention(
            q, k, v, self.kernel_size, dilation=self.dilation, border="cut", return_lse=True
        )
        if self.border == "mask":
            return y
        rows, columns = (
            axis_windows(size, taps, step, 1, False, cut=True, device=q.device)[1]
            for size, taps, step in zip(q.shape[1:3], self.kernel_size, self.dilation)
        )
        beyond = self.kernel_size[0] * self.kernel_size[1] - rows.unsqueeze(1) * columns
        return y * torch.sigmoid(lse - beyond.to(lse.dtype).log().unsqueeze(-1)).to(y.dtype).unsqueeze(-1)

    def _taps(self, x: Tensor) -> list[Tensor]:
        """Views (B, H, W, ...) of x with zeros around it, as every tap sees it, in the order of the taps."""
        height, width = x.shape[1:3]
        down, right = self.reach
        padded = F.pad(x, (0,) * (2 * x.ndim - 6) + (right, right, down, down))
        return [
            padded[:, top : top + height, left : left + width]
            for top in range(0, 2 * down + 1, self.dilation[0])
            for left in range(0, 2 * right + 1, self.dilation[1])
        ]

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights of all taps: q, k (B, H, W, heads, d) -> (B, H, W, heads, taps), in float32 at least."""
        q = q.to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
        logits = torch.stack([(q * tap).sum(-1) for tap in self._taps(k)], -1)
        if self.border == "mask":
            inside = torch.stack(self._taps(logits.new_ones(1, *logits.shape[1:3], 1)), -1)
            logits = logits.masked_fill(inside == 0, -torch.inf)
        return logits.softmax(-1)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W). Zero outside its window;
        the sum is 1 less what goes to zeros beyond the border. A cell's weight is shared by its pixels."""
        q, k, _ = self._split(x)
        weights = self._weights(q.flatten(3, 4), k.flatten(3, 4)).unflatten(3, q.shape[3:5])
        (row, below), (column, right) = (divmod(index, 2) if self.pooled else (index, 0) for index in place)
        chosen = weights.new_zeros(1, *q.shape[1:5], 1)
        chosen[:, row, column, 2 * below + right if self.pooled == "keys" else 0] = 1
        weights = (weights * (self._roll(chosen, 1) if self.shifted == "map" else chosen)).sum(3, keepdim=True)
        padded = weights.new_zeros(
            len(x), *(size + 2 * reach for size, reach in zip(q.shape[1:3], self.reach)), 1, self.heads
        )
        for number, weight in enumerate(weights.unbind(-1)):
            i, j = (index * step for index, step in zip(divmod(number, self.kernel_size[1]), self.dilation))
            padded[:, i : i + q.shape[1], j : j + q.shape[2]] += weight
        inner = (slice(reach, reach + size) for size, reach in zip(q.shape[1:3], self.reach))
        maps = self._roll(padded[(slice(None), *inner)].unsqueeze(-1), -1)[..., 0, :, 0].permute(0, 3, 1, 2)
        if self.pooled:
            ones = F.pad(x.new_ones(x.shape[-2:]), (0, -x.shape[-1] % 2, 0, -x.shape[-2] % 2))
            maps = maps / ones.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).sum((1, 3))
            maps = maps.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : x.shape[-2], : x.shape[-1]]
        return maps


CHOICES: dict[str, tuple] = dict(shifted=("keys", "map"), pooled=("keys", "map", None), border=("zero", "mask"))


def _check_choices(owner: str, **options: str | None) -> None:
    for name, value in options.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{owner}: {name} must be one of {CHOICES[name]}, got {value!r:.60}")


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or any(not is_whole(x) or x < 1 for x in pair):
        raise ValueError(f"MSAConv: {name} must be an integer of at least 1, or two of them, got {value!r:.60}")
    return pair


def _even(x: Tensor) -> Tensor:
    """A map whose odd last row and column stand twice: cells of 2x2 pixels have the mean of what pixels they have."""
    height, width = x.shape[-2:]
    if not any_free((height, width)) and height % 2 == width % 2 == 0:
        return x
    return F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")


@MODELS.register_module()
class MSAConv2d(nn.Module):
    """MSA-Conv as released, in the place of a convolution: ReLU(conv(attention(x) + x)).

    By name it is a `conv_cfg` of mmcv, dict(type="attlas.MSAConv2d"). The attention is dilated, the convolution is not:
    dilated stages of mmdet and mmseg, whose padding grows with the dilation, do not fit.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: odd numbers of taps of the attention and the convolution; one for both axes, or two.
        stride: as of `nn.Conv2d`, of the convolution.
        padding: as of `nn.Conv2d`, of the convolution; by default 1, as released, on axes with more than one tap.
        dilation: distance of neighboring taps of the attention; one number for both axes, or two.
        dropout: rate of dropout of the weights in training.
        bias: whether the convolution has a bias.
        groups: 1, or `in_channels` for a depth-wise convolution with a 1x1 convolution behind it (ours).
        heads: number of attention heads.
        shift, **attention: as of `MSAConv`.

    `forward(x (B, in_channels, H, W)) -> (B, out_channels, ...)`, whose size is that of the convolution. The attributes
    of an `nn.Conv2d` that mmcv reads are there.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | tuple[int, int] = 1,
        dilation: int | Sequence[int] = 1,
        dropout: float = 0.1,
        padding: int | tuple[int, int] | None = None,
        bias: bool = False,
        groups: int = 1,
        heads: int = 1,
        shift: int | None = 0,
        **attention,
    ):
        super().__init__()
        if groups not in (1, in_channels):
            raise ValueError(f"MSAConv2d: groups must be 1 or in_channels = {in_channels}, got {groups}")
        self.attention = MSAConv(
            in_channels, heads, kernel_size, dilation, shift, dropout=dropout, project=False, **attention
        )
        taps = self.attention.kernel_size
        if padding is None:
            padding = int(taps[0] > 1), int(taps[1] > 1)
        separate = groups > 1
        width = in_channels if separate else out_channels
        self.conv = nn.Conv2d(in_channels, width, taps, stride, padding, groups=groups, bias=bias and not separate)
        self.pointwise = Pointwise(in_channels, out_channels, bias=bias) if separate else nn.Identity()
        self.activation = nn.ReLU(inplace=True)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.dilation = taps, self.attention.dilation
        self.stride, self.padding, self.groups = self.conv.stride, self.conv.padding, groups
        self.transposed, self.output_padding = False, self.conv.output_padding

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.pointwise(self.conv(self.attention(x) + x)))


# --- network ---------------------------------------------------------------------------------------------------------


class TiC(Pyramid):
    """A network of MSA-Conv at any size of the image, see above; all of it but the transitions' operator is ours.

    Args:
        dims, depths, mlp_ratio, drop_path_rate, layer_scale, **common: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage; by default of 32 channels each.
        kernel_size: taps on an axis; one number, or one for each stage. Transitions have 3.
        dilations: dilations of the first blocks of a stage, which repeat; for each stage a tuple, or one number for all
            its blocks, or one number for all stages.
        shift, shifted, border: as of `MSAConv`, of all blocks.
        pooled: as of `MSAConv`, of every second block.
        depthwise: whether the convolutions of transitions are depth-wise.
        dropout: rate of dropout of the weights of attention in training.
    """

    fixed_sizes = FIXED_BY_WINDOWS

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: int | Sequence[int] | None = (4, 4, 8, 16),
        kernel_size: int | Sequence[int] = 7,
        dilations: int | Sequence[int | Sequence[int]] = ((1,), (1,), (1,), (1,)),
        shift: int | None = None,
        shifted: str = "keys",
        pooled: str | None = "keys",
        border: str = "zero",
        depthwise: bool = False,
        dropout: float = 0.0,
        **common,
    ):
        self.heads = per_stage("heads", heads, len(dims))
        self.kernel_size = per_stage("kernel_size", kernel_size, len(dims))
        each = per_stage("dilations", dilations, len(dims))
        self.dilations = [tuple(own) if isinstance(own, Sequence) else (own,) for own in each]
        if any(not own or any(not is_whole(n) or n < 1 for n in own) for own in self.dilations):
            raise ValueError(f"TiC: dilations must be integers of at least 1, one or more for each stage, got {each}")
        _check_choices("TiC", shifted=shifted, pooled=pooled, border=border)
        self.attention: dict[str, Any] = dict(shift=shift, shifted=shifted, border=border, dropout=dropout)
        self.pooled, self.depthwise = pooled, depthwise
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        first = 1 + (self.strides[0] + 1) % 2
        return nn.Sequential(
            ConvNorm(in_channels, dim // 2, 3, stride=first),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 2, dim, 3, stride=self.strides[0] // first),
            nn.ReLU(inplace=True),
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        options = dict(groups=in_dim if self.depthwise else 1, heads=self.heads[stage - 1])
        options |= dict(border=self.attention["border"], dropout=self.attention["dropout"])
        return nn.Sequential(LayerNorm2d(in_dim), MSAConv2d(in_dim, dim, 3, self.ratios[stage], **options))

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        dilations = self.dilations[stage]
        mixer = MSAConv(
            dim,
            self.heads[stage],
            self.kernel_size[stage],
            dilations[index % len(dilations)],
            pooled=self.pooled if index % 2 else None,
            **self.attention,
        )
        return Block(dim, mixer, Mlp(dim, self.mlp_ratio[stage]), drop_path, self.layer_scale[stage])

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, before=LayerNorm2d(dim))


# no sizes were published: these are ours
VARIANTS = {
    "tic_tiny": Variant(dict(), 13_881_928, drop_path=0.1),
    "tic_small": Variant(dict(dims=(96, 192, 384, 768), heads=(4, 6, 12, 24)), 30_817_144, drop_path=0.2),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

# of the operator alone
CONV_RULES: Rules = [(r"^qkv_conv\.", r"attention.qkv."), (r"^mlp\.", r"conv.")]

register(TiC, VARIANTS)
