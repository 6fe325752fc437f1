"""ConvTTrans with LI-ConvLSTM: the middle frames of a clip, predicted from the frames before and behind them.

"Advancing Video Anomaly Detection: A Bi-Directional Hybrid Framework for Enhanced Single- and Multi-Task Approaches",
IEEE TIP 2024, arXiv 2504.14753; https://github.com/SHENGUODONG19951126/-ConvTTrans-ConvLSTM (no license). A network
that learned on normal clips predicts abnormal ones badly. With L the low maps of all frames at full resolution:

    attention   a token is a frame: q, k, v = 3x3 convolutions, the token of a head its d channels at all pixels;
                softmax(q k' / sqrt(d H W)) over the frames, without any encoding of time
    encoder     of the frames at both ends, and two decoders, whose queries are the frames one before each middle frame
                (forward) and one behind it (backward, in reversed time); both see the encoder's output
    LI-ConvLSTM alpha runs over L of these frames, beta over what the decoders give, at full resolution again; beta also
                sees the hidden state of alpha at the same step
    prediction  tanh(conv(mix forward + (1 - mix) backward))

Attention costs T^2 C H W, all else is convolutions: linear in the pixels.

As released, norms are batch norms without running statistics: also in inference they take mean and variance over all
frames of a clip, and of the clips beside it. And the decoders' queries are the real frames beside the middle ones, also
in inference (teacher forcing): the mask, which is causal, only keeps them from those that come later in their
direction. Both are the default here. The paper's branch for several tasks is not in the code, nor here. The released
training takes a frame whose first pixel is white for padding, by mistake; here no frame is padding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import one_of, positive
from ...registry import MODELS

SLOPE = 0.2  # of all leaky ReLUs
MULTIPLE = 4  # of which height and width are


def per_frame(module: nn.Module, x: Tensor) -> Tensor:
    """A module of maps (N, C, H, W) on every frame of clips (B, T, C, H, W)."""
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class ClipNorm(nn.Module):
    """Normalization of each channel by the mean and variance of the input, never by running ones.

    Args:
        dim: channels.
        statistics: "batch" for those over all clips, frames and pixels, as released: what a clip comes to depends on
            those beside it. "clip" for those over the frames and pixels of each clip, the same for a batch of one.

    `forward(x (B, T, C, H, W))` -> the same shape. Mean and variance are of float32.
    """

    def __init__(self, dim: int, statistics: str = "batch", eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.statistics, self.eps = one_of("statistics", statistics, ("batch", "clip")), eps

    def forward(self, x: Tensor) -> Tensor:
        if self.statistics == "batch":
            maps = x.flatten(0, 1)
            out = F.batch_norm(maps, None, None, self.weight, self.bias, training=True, eps=self.eps)
            return out.unflatten(0, x.shape[:2])
        maps = x.transpose(1, 2)  # a group of each channel: all frames and pixels of a clip
        return F.group_norm(maps, maps.shape[1], self.weight, self.bias, self.eps).transpose(1, 2)


class ConvTemporalAttention(nn.Module):
    """Multi-head attention between the frames of clips, whose tokens are whole maps.

    Args:
        dim: channels.
        heads: number of heads, which divides `dim`.
        dropout: rate at which the weights of attention are dropped in training.

    `forward(queries (B, T, C, H, W), keys (B, S, C, H, W), values=None, mask=None)` -> (B, T, C, H, W). `values` are
    the keys unless given; `mask` is (T, S) or (B, T, S), T perhaps 1 for all queries, and where it is 0 there is no
    attention. A query all of whose keys are masked takes the mean of the values, as released (its scores are all
    -1e9).
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if dim % positive("heads", heads):
            raise ValueError(f"heads is {heads}; it must divide the channels, {dim}.")
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        values = keys if values is None else values
        q, k, v = (
            per_frame(conv, x).unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(3)  # (B, heads, T, d H W)
            for conv, x in ((self.q, queries), (self.k, keys), (self.v, values))
        )
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        if mask is not None:
            blocked = (mask[:, None] if mask.ndim == 3 else mask) == 0
            scores = scores.masked_fill(blocked, -6e4 if scores.dtype == torch.float16 else -1e9)
        mixed = self.dropout(scores.softmax(3)) @ v
        return per_frame(self.out, mixed.transpose(1, 2).reshape(queries.shape))


class ConvFeedForward(nn.Module):
    """3x3 convolutions to `ratio` times as many channels and back, on every frame."""

    def __init__(self, dim: int, ratio: int = 4, dropout: float = 0.0):
        super().__init__()
        self.expand = nn.Conv2d(dim, ratio * dim, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.Conv2d(ratio * dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self.reduce, self.dropout(F.leaky_relu(per_frame(self.expand, x), SLOPE)))


class EncoderLayer(nn.Module):
    """A pre-norm layer of clips (B, T, C, H, W): attention among the frames, then convolutions.

    Args:
        dim: channels.
        heads: number of heads.
        dropout: rate of all dropouts.
        statistics: as of `ClipNorm`.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.1, statistics: str = "batch"):
        super().__init__()
        self.norm1, self.norm2 = ClipNorm(dim, statistics), ClipNorm(dim, statistics)
        self.attention = ConvTemporalAttention(dim, heads, dropout)
        self.feed_forward = ConvFeedForward(dim, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n = self.norm1(x)
        x = x + self.dropout(self.attention(n, n, mask=mask))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class DecoderLayer(nn.Module):
    """As `EncoderLayer`, with attention to the encoder's output between the two.

    `forward(x (B, T, C, H, W), memory (B, S, C, H, W), mask=None, memory_mask=None)` -> (B, T, C, H, W); the masks are
    those of the attention to x and to the memory.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.1, statistics: str = "batch"):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (ClipNorm(dim, statistics) for _ in range(3))
        self.own = ConvTemporalAttention(dim, heads, dropout)
        self.cross = ConvTemporalAttention(dim, heads, dropout)
        self.feed_forward = ConvFeedForward(dim, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, memory: Tensor, mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        n = self.norm1(x)
        x = x + self.dropout(self.own(n, n, mask=mask))
        x = x + self.dropout(self.cross(self.norm2(x), memory, mask=memory_mask))
        return x + self.dropout(self.feed_forward(self.norm3(x)))


class ConvLSTM(nn.Module):
    """A convolutional LSTM whose gates may see the hidden states of another one.

    The gates of a step are GroupNorm(conv([x, h, e])), split into input, forget, candidate and output; h is the hidden
    state before, e that of the other cell at the same step. Without e its part of the convolution sees zeros. Parts of
    the convolution that see x and e are done for all steps at once.

    Args:
        in_dim: channels of the input.
        dim: channels of the state; the norm has 4 dim // 32 groups, at least one, which divide 4 dim.
        kernel: side of the convolution, odd.

    `forward(x (B, T, in_dim, H, W), other (B, T, dim, H, W)=None)` -> hidden states (B, T, dim, H, W); T >= 1, the
    first state is zero.
    """

    def __init__(self, in_dim: int, dim: int, kernel: int = 5):
        super().__init__()
        groups = 4 * positive("dim", dim) // 32
        if groups == 0 or 4 * dim % groups:
            raise ValueError(f"dim is {dim}; 4 dim // 32 = {groups} groups must be one or more, and divide {4 * dim}.")
        if positive("kernel", kernel) % 2 == 0:
            raise ValueError(f"kernel is {kernel}; it must be odd.")
        self.in_dim, self.dim = in_dim, dim
        self.conv = nn.Conv2d(in_dim + 2 * dim, 4 * dim, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(groups, 4 * dim)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        of_x, of_hidden, of_other = self.conv.weight.split([self.in_dim, self.dim, self.dim], 1)
        seen, weight = (x, of_x) if other is None else (torch.cat([x, other], 2), torch.cat([of_x, of_other], 1))
        padding = self.conv.padding
        outside = F.conv2d(seen.flatten(0, 1), weight, self.conv.bias, padding=padding).unflatten(0, x.shape[:2])
        hidden: Tensor | None = None
        cell: Tensor | None = None
        states = []
        for gates in outside.unbind(1):
            if hidden is not None:
                gates = gates + F.conv2d(hidden, of_hidden, padding=padding)
            enter, forget, candidate, leave = self.norm(gates).chunk(4, 1)
            new = enter.sigmoid() * candidate.tanh()
            cell = new if cell is None else forget.sigmoid() * cell + new
            hidden = leave.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states, 1)


class LIConvLSTM(nn.Module):
    """Two ConvLSTMs of one kind, alpha and beta; beta sees the hidden states of alpha.

    `forward(x, y)` of two sequences (B, T, in_dim, H, W) -> the hidden states of alpha over x, and of beta over y."""

    def __init__(self, in_dim: int, dim: int, kernel: int = 5):
        super().__init__()
        self.alpha, self.beta = ConvLSTM(in_dim, dim, kernel), ConvLSTM(in_dim, dim, kernel)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(x)
        return alpha, self.beta(y, alpha)


class Direction(nn.Module):
    """What each direction of time has of its own: a decoder, and the two ConvLSTMs."""

    def __init__(self, dims: Sequence[int], heads: int, layers: int, kernel: int, dropout: float, statistics: str):
        super().__init__()
        self.decoder = nn.ModuleList(DecoderLayer(dims[2], heads, dropout, statistics) for _ in range(layers))
        self.bridge = LIConvLSTM(dims[0], dims[0], kernel)


_WAYS, _CELLS = dict(f="forward_way", b="backward_way"), {"1": "alpha", "2": "beta"}
# from the authors' names inside of a layer or of a bridge to ours
PART_RULES: list[tuple[str, Any]] = [
    (r"\.norm_(\d)\.norm\.", r".norm\1."),
    (r"\.attn\.", ".attention."),
    (r"\.attn_1\.", ".own."),
    (r"\.attn_2\.", ".cross."),
    (r"\.([qkv])_conv\.", r".\1."),
    (r"\.ff\.conv_1\.", ".feed_forward.expand."),
    (r"\.ff\.conv_2\.", ".feed_forward.reduce."),
    (r"((?:alpha|beta)\.)conv\.0\.", r"\1conv."),
    (r"((?:alpha|beta)\.)conv\.1\.", r"\1norm."),
]


def _names() -> list[tuple[str, Any]]:
    """Rules from the authors' names to ours."""
    norms = ("low", "middle", "high", "encoder", "decoder", "up1", "up2")
    stems = {"conv_1": "low", "conv_2": "middle", "conv_3": "high", "deconv_1": "up1", "deconv_2": "up2"}
    return [
        (r"^conv_4\.", "last."),
        *((rf"^{old}\.", f"{new}.") for old, new in stems.items()),
        *((rf"^bn_{number}\.", f"norms.{name}.") for number, name in enumerate(norms, 1)),
        (r"^conv_tsfm_en_(\d+)\.", lambda found: f"encoder.{int(found[1]) - 1}."),
        (r"^conv_tsfm_de_(\d+)_([fb])\.", lambda found: f"{_WAYS[found[2]]}.decoder.{int(found[1]) - 1}."),
        (r"^convlstm_([12])([fb])\.", lambda found: f"{_WAYS[found[2]]}.bridge.{_CELLS[found[1]]}."),
        *PART_RULES,
    ]


@MODELS.register_module()
class ConvTemporalVAD(nn.Module):
    """The network of the paper, for clips of any size and length.

    Args:
        in_channels: channels of the frames.
        context: number of frames at each end of a clip that are not predicted, at least 1.
        heads: number of heads of all attention, which divides the last of `dims`.
        layers: number of layers of the encoder, and of each decoder.
        dims: channels of the maps at full, half and a quarter of the resolution.
        kernel: side of the convolutions of the ConvLSTMs.
        mix: share of the forward direction in the prediction, from 0 to 1; the paper's lambda.
        dropout: rate of all dropouts.
        statistics: "batch" as released, or "clip", which lets no clip depend on those beside it; see `ClipNorm`.

    `forward(clips (B, T, in_channels, H, W) in [-1, 1])` -> the frames from `context` to T - context - 1 (B, T - 2
    context, in_channels, H, W) as predicted, in [-1, 1]; T > 2 context; H and W are multiples of 4.

    Raises:
        ValueError: options or clips that do not fit.
    """

    multiple = MULTIPLE
    checkpoint_rules = _names()

    def __init__(
        self,
        in_channels: int = 1,
        context: int = 3,
        heads: int = 8,
        layers: int = 5,
        dims: Sequence[int] = (16, 32, 64),
        kernel: int = 5,
        mix: float = 0.85,
        dropout: float = 0.1,
        statistics: str = "batch",
    ):
        super().__init__()
        if len(dims) != 3:
            raise ValueError(f"dims is {tuple(dims)}; it must be three numbers of channels.")
        if not 0 <= mix <= 1:
            raise ValueError(f"mix is {mix!r}; it must lie in [0, 1].")
        self.in_channels, self.context = positive("in_channels", in_channels), positive("context", context)
        self.mix = float(mix)
        positive("layers", layers)
        low, middle, high = (positive("dims", dim) for dim in dims)
        self.low = nn.Conv2d(in_channels, low, 3, padding=1)
        self.middle = nn.Conv2d(low, middle, 3, padding=1)
        self.high = nn.Conv2d(middle, high, 3, padding=1)
        self.encoder = nn.ModuleList(EncoderLayer(high, heads, dropout, statistics) for _ in range(layers))
        self.forward_way = Direction((low, middle, high), heads, layers, kernel, dropout, statistics)
        self.backward_way = Direction((low, middle, high), heads, layers, kernel, dropout, statistics)
        self.up1 = nn.ConvTranspose2d(high, middle, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(middle, low, 2, stride=2)
        self.last = nn.Conv2d(low, in_channels, 3, padding=1)
        widths = dict(low=low, middle=middle, high=high, encoder=high, decoder=high, up1=middle, up2=low)
        self.norms = nn.ModuleDict({name: ClipNorm(width, statistics) for name, width in widths.items()})

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norms[name](x), SLOPE)

    def check(self, clips: Tensor) -> None:
        """Raise a ValueError unless clips are such as `forward` takes."""
        if clips.ndim != 5 or clips.shape[2] != self.in_channels:
            raise ValueError(
                f"clips are {tuple(clips.shape)}; they must be (B, T, {self.in_channels}, H, W): frames of "
                f"{self.in_channels} channels (in_channels)."
            )
        frames, (height, width) = clips.shape[1], clips.shape[3:]
        if frames <= 2 * self.context:
            raise ValueError(
                f"clips have {frames} frames; with context={self.context} at each end they need {2 * self.context + 1}."
            )
        if height % MULTIPLE or width % MULTIPLE or not height or not width:
            raise ValueError(f"frames are {width} x {height}; width and height must be multiples of {MULTIPLE}.")

    def forward(self, clips: Tensor) -> Tensor:
        self.check(clips)
        first, end = self.context, clips.shape[1] - self.context  # of the middle frames
        low = self._normed("low", per_frame(self.low, clips))
        maps = low
        for name in ("middle", "high"):
            maps = self._normed(name, per_frame(getattr(self, name), maps))
            maps = F.max_pool2d(maps.flatten(0, 1), 2).unflatten(0, maps.shape[:2])
        memory = torch.cat([maps[:, :first], maps[:, end:]], 1)
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.norms["encoder"](memory)
        before, behind = slice(first - 1, end - 1), slice(first + 1, end + 1)
        forward = self._direction(self.forward_way, low[:, before], maps[:, before], memory)
        backward = self._direction(self.backward_way, low[:, behind].flip(1), maps[:, behind].flip(1), memory)
        mixed = self.mix * forward + (1 - self.mix) * backward.flip(1)
        return per_frame(self.last, mixed).tanh()

    def _direction(self, way: Direction, low: Tensor, maps: Tensor, memory: Tensor) -> Tensor:
        steps = maps.shape[1]
        causal = torch.ones(steps, steps, dtype=torch.bool, device=maps.device).tril()
        for layer in way.decoder:
            maps = layer(maps, memory, causal)
        maps = self.norms["decoder"](maps)
        for name in ("up1", "up2"):
            maps = self._normed(name, per_frame(getattr(self, name), maps))
        return way.bridge(low, maps)[1]


# Options, and the number of parameters.
VARIANTS: Mapping[str, tuple[dict[str, Any], int]] = {
    "conv_temporal_vad_grey": (dict(in_channels=1), 8_468_673),
    "conv_temporal_vad_rgb": (dict(in_channels=3), 8_469_251),
}
