"""Attention in windows: without any notion of position (DaViT, L2ViT), and with a relative position bias, overlapping
windows as a case of it, and channel attention beside it. The latter are the mixers of HAT
(`dense/restoration/hat.py`), which any host may use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.halo_attention import window_attention
from ...registry import MIXERS
from .attention import heads_of
from .linear import Linear
from .mlp import SqueezeExcite
from .patches import fill
from .residual import DropPath


def pair_bias(table: Tensor, window: int, reach: int) -> Tensor:
    """The bias of every query of a window and every key of the window that it reads.

    Args:
        table: biases (w + r - 1, w + r - 1, heads). Entry [dy + w - 1, dx + w - 1] belongs to a key dy rows below and
            dx columns to the right of its query, each counted from the first pixel of its own window.
        window, reach: sides w of the windows of queries and r of those of keys.

    Returns:
        (heads, w², r²). No table of indices is needed: it is a copy of slices that overlap.
    """
    slices = table.unfold(0, reach, 1).unfold(1, reach, 1).flip(0, 1)  # (w, w, heads, r, r): of query row y, w - 1 - y
    return slices.permute(2, 0, 1, 3, 4).reshape(-1, window**2, reach**2)


@MIXERS.register_module()
class SpatialWindowAttention(nn.Module):
    """Self-attention within windows that do not overlap, without any notion of position: softmax(q kᵀ / √d) v.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        window: side w of a window in pixels. Maps are filled up with zeros to whole windows.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. The zeros that fill up the last windows take part in their softmax.
    Source: DaViT, arXiv 2204.03645.
    """

    def __init__(self, dim: int, heads: int | None = None, window: int = 7, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads_of("SpatialWindowAttention", dim, heads)
        if window < 1:
            raise ValueError(f"SpatialWindowAttention: window={window} must be at least 1")
        self.window = window
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each (B, rows of windows, columns of windows, heads, w², d)."""
        w = self.window
        pixels = fill(x, w).permute(0, 2, 3, 1).unflatten(2, (-1, w)).unflatten(1, (-1, w))
        windows = pixels.transpose(2, 3).flatten(3, 4)  # copied before the projection makes three of them
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, -1))
        # (B, rows, columns, w², 3, heads, d) -> (3, B, rows, columns, heads, w², d)
        return qkv.permute(4, 0, 1, 2, 5, 3, 6).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        parts = self._split(x)
        q, k, v = (part.flatten(0, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v)  # (windows, heads, w², d)
        y = self.proj(y.transpose(1, 2).flatten(2))  # before the windows are joined, which would copy what it keeps
        y = y.unflatten(1, (self.window, self.window)).unflatten(0, parts[0].shape[:3])
        y = y.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, rows · w, columns · w, C)
        return y[:, :height, :width].permute(0, 3, 1, 2)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at the pixels, by head: (B, heads, H, W). Zero outside its window;
        the sum is 1 less what goes to the filling beyond the map."""
        (row, inner_row), (column, inner_column) = (divmod(index, self.window) for index in place)
        q, k, _ = (part[:, row, column] for part in self._split(x))
        query = q[:, :, inner_row * self.window + inner_column, None]
        weights = (query @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        maps = x.new_zeros(len(x), self.heads, *x.shape[-2:])
        top, left = row * self.window, column * self.window
        here = maps[:, :, top : top + self.window, left : left + self.window]
        here.copy_(weights.unflatten(-1, (self.window, self.window)).squeeze(2)[..., : here.shape[2], : here.shape[3]])
        return maps


@MIXERS.register_module()
class WindowAttention(nn.Module):
    """Self-attention within windows that do not overlap, with a relative position bias.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        window: side w of a window in pixels. Maps are filled up with zeros to whole windows.
        shift: number of pixels, below w, by which windows are shifted. The map is rolled; pixels of opposite borders
            hardly see each other (their logits are 100 less).
        qkv_bias: whether the projection to queries, keys and values has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. `table` ((2w - 1)², heads) is in Swin's order: the offset of the query
    from the key, rows first. Source: Swin Transformer, arXiv 2103.14030.
    """

    no_weight_decay = ("table",)
    overlap = 0.0

    def __init__(self, dim: int, heads: int | None = None, window: int = 16, shift: int = 0, qkv_bias: bool = True):
        super().__init__()
        name = type(self).__name__
        self.heads = heads_of(name, dim, heads)
        if window < 1 or not 0 <= shift < window:
            raise ValueError(f"{name}: window={window} must be at least 1, and shift={shift} lie in 0..window - 1")
        self.window, self.shift = window, shift
        self.reach = window + int(window * self.overlap)
        if (self.reach - window) % 2:
            raise ValueError(
                f"{name}: overlap={self.overlap} times window={window}, rounded down, must be even: one half is on "
                f"either side, got {self.reach - window}"
            )
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.table = nn.Parameter(torch.empty((window + self.reach - 1) ** 2, self.heads))
        self.proj = Linear(dim, dim)
        self.reset_weights()

    def reset_weights(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def ordered(self) -> Tensor:
        """The table as `pair_bias` takes it."""
        side = self.window + self.reach - 1
        return self.table.flip(0).unflatten(0, (side, side))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = fill(x, self.window)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (2, 3))
        q, k, v = self.qkv(x.permute(0, 2, 3, 1)).unflatten(-1, (3, self.heads, -1)).unbind(3)
        del x  # as q, k and v below: in inference the memory of each map counts
        bias = pair_bias(self.ordered(), self.window, self.reach)
        y = window_attention(q, k, v, bias.to(q.dtype), self.window, (self.reach - self.window) // 2, self.shift)
        del q, k, v
        y = self.proj(y.flatten(3)).permute(0, 3, 1, 2)
        if self.shift:
            y = y.roll((self.shift, self.shift), (2, 3))
        return y[..., :height, :width]


@MIXERS.register_module()
class OverlappingAttention(WindowAttention):
    """Attention of the pixels of a window to a larger window around it: overlapping cross-attention.

    Args:
        dim, heads, window, qkv_bias: as of `WindowAttention`.
        overlap: growth of a window of keys over w, such as 0.5 for a side r of 1.5 w; the growth in pixels, rounded
            down, must be even.

    Beyond the map keys and values are zero, but not masked. `forward(x (B, C, H, W)) -> (B, C, H, W)`. `table`
    ((w + r - 1)², heads) is in the order of the published weights, where offset (dy, dx) of a key from its query has
    row (dy + w - r + 1) (w + r - 1) + dx + w - r + 1, negative ones counted from the end.
    Source: HAT, arXiv 2205.04437.
    """

    def __init__(
        self, dim: int, heads: int | None = None, window: int = 16, overlap: float = 0.5, qkv_bias: bool = True
    ):
        if overlap < 0:
            raise ValueError(f"OverlappingAttention: overlap={overlap} must be at least 0")
        self.overlap = overlap
        super().__init__(dim, heads, window, 0, qkv_bias)

    def ordered(self) -> Tensor:
        side = self.window + self.reach - 1
        return self.table.roll((self.reach - 2) * (side + 1), 0).unflatten(0, (side, side))


@MIXERS.register_module()
class ChannelAttention(nn.Module):
    """Two 3x3 convolutions with GELU between, then squeeze and excitation: HAT's channel attention block.

    Args:
        dim: channels C.
        compress: quotient of C and the channels between the convolutions.
        squeeze: quotient of C and the channels of the gate.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Source: HAT, arXiv 2205.04437.
    """

    def __init__(self, dim: int, compress: int = 3, squeeze: int = 30):
        super().__init__()
        for name, quotient in (("compress", compress), ("squeeze", squeeze)):
            if quotient < 1:
                raise ValueError(f"ChannelAttention: {name}={quotient} must be at least 1")
        self.conv1 = nn.Conv2d(dim, max(1, dim // compress), 3, padding=1)
        self.activation = nn.GELU()
        self.conv2 = nn.Conv2d(max(1, dim // compress), dim, 3, padding=1)
        self.gate = SqueezeExcite(dim, max(1, dim // squeeze))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.conv2(self.activation(self.conv1(x))))


@MIXERS.register_module()
class HybridAttention(nn.Module):
    """A mixer and channel attention side by side: mixer(x) + channel_scale · channel_attention(x).

    Args:
        dim: channels C.
        mixer: name of MIXERS, or dict(type=name, **options); windows with a relative position bias by default.
        compress, squeeze: as of `ChannelAttention`.
        channel_scale: factor of the channel attention.
        drop_path: rate of stochastic depth of the mixer alone.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Source: HAT, arXiv 2205.04437.
    """

    def __init__(
        self,
        dim: int,
        mixer="WindowAttention",
        compress: int = 3,
        squeeze: int = 30,
        channel_scale: float = 0.01,
        drop_path: float = 0.0,
    ):
        super().__init__()
        options = dict(type=mixer) if isinstance(mixer, str) else dict(mixer)
        self.mixer = MIXERS.build({**options, "dim": dim})
        self.channels = ChannelAttention(dim, compress, squeeze)
        self.channel_scale = channel_scale
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.mixer(x)) + self.channel_scale * self.channels(x)
