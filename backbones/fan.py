"""FAN, with token-aware pooling: fully attentional networks, which attend to pixels and then to channels.

"Robustifying Token Attention for Vision Transformers", ICCV 2023, arXiv 2303.11126;
https://github.com/guoyongcs/TAPADL (MIT), which adds TAP (`mixers/tap.py`) and a loss (`layers/diversification.py`) to
FAN: "Understanding The Robustness in Vision Transformers", ICML 2022, arXiv 2204.12451. With `num_scales=None` it is
FAN without TAP.

A block, with layer scale on both branches:

    x + attention(LN(TAP(x)));  x + channels(LN(x))

Attention to channels gates what an MLP with depth-wise convolutions gives. For every head of d channels of its input x,
of N pixels, with q a linear layer of x:

    a = softmax over N of q  (N, d);   k = mean over d of (softmax over N of x)  (N)
    out = temperature · sigmoid(aᵀ k) · LN(mlp(x))

Behind the blocks, a class token reads the pixels in blocks of class attention, which change the pixels, too: what the
second block reads, and the dense form gives, are twice the norm of x + γ LN(x), where γ is the factor of layer scale.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import (
    Attention,
    Block,
    Blocks,
    ClassAttention,
    ConvNorm,
    Head,
    LayerNorm2d,
    LayerScale,
    Linear,
    Linear2d,
    Mlp,
    Tokens,
    depthwise,
)
from .mixers.tap import TAP
from .skeletons.backbone import Notes
from .skeletons.options import check_whole, per_stage
from .skeletons.pyramid import Pyramid, Stage
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class FANAttention(Attention):
    """`Attention` whose queries have a layer of their own, as the authors' files have it. Arguments as there."""

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim, heads, qkv_bias)
        del self.qkv
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return q, *self.kv(rows).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class FANClassAttention(ClassAttention):
    """`ClassAttention` whose keys and values have layers of their own. Arguments as there."""

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim, heads, qkv_bias)
        del self.kv
        self.k = Linear(dim, dim, bias=qkv_bias)
        self.v = Linear(dim, dim, bias=qkv_bias)

    def _split(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.cat([tokens, x.flatten(2).transpose(1, 2)], dim=1)
        parts = self.q(tokens), self.k(rows), self.v(rows)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v


class LocalMlp(nn.Module):
    """fc2(y + γ local(y)), y = fc1(x), where local is a depth-wise 3x3 convolution, GELU, batch norm, and another.

    Args:
        dim: channels C.
        ratio: hidden width over C.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, ratio: float = 4.0):
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = Linear2d(dim, hidden)
        self.local = nn.Sequential(depthwise(hidden, 3), nn.GELU(), nn.BatchNorm2d(hidden), depthwise(hidden, 3))
        self.scale = LayerScale(hidden, 1.0)
        self.fc2 = Linear2d(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        return self.fc2(torch.addcmul(y, self.local(y), self.scale.gamma.view(-1, 1, 1)))


class ChannelProcessing(nn.Module):
    """Attention to channels: an MLP, and a gate for each channel, see above.

    Args:
        dim: channels C.
        heads: number of heads.
        ratio: hidden width of the MLP over C.
        qkv_bias: whether the layer of the queries has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    map_kind = "gate"

    def __init__(self, dim: int, heads: int, ratio: float = 4.0, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.mlp = LocalMlp(dim, ratio)
        self.norm = LayerNorm2d(dim)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def gates(self, x: Tensor) -> Tensor:
        """(B, C), in (0, 1) times the temperatures."""
        rows = x.flatten(2).transpose(1, 2)
        q = self.q(rows).softmax(1).unflatten(-1, (self.heads, -1))  # (B, N, heads, d)
        k = rows.softmax(1).unflatten(-1, (self.heads, -1)).mean(-1, keepdim=True)
        gates = (q.permute(0, 2, 3, 1) @ k.transpose(1, 2)).to(x.dtype)  # (B, heads, d, 1)
        return (torch.sigmoid(gates) * self.temperature).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mlp(x)) * self.gates(x)[..., None, None]

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The mean of the gates over channels, the same everywhere: (B, 1, H, W)."""
        return self.gates(x).mean(1)[:, None, None, None].expand(-1, -1, *x.shape[-2:])


class FourierPosition(nn.Module):
    """x + a linear layer of sines and cosines of the place: at 2π of the height and of the width, over 10000^(2i / D).

    Args:
        dim: channels C.
        hidden: number D of sines and cosines of the row, and of the column.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, hidden: int = 32):
        super().__init__()
        self.hidden = hidden
        self.projection = nn.Conv2d(2 * hidden, dim, 1)

    def _waves(self, size: int) -> Tensor:
        """(size, D), at least in float32."""
        weight = self.projection.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        place = torch.arange(1, size + 1, device=weight.device, dtype=wide) / (size + 1e-6) * (2 * math.pi)
        periods = 10000 ** (torch.arange(0, self.hidden, 2, device=weight.device, dtype=wide) / self.hidden)
        angles = place[:, None] / periods
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows, columns = self._waves(height)[:, None], self._waves(width)[None]
        both = torch.cat([rows.expand(-1, width, -1), columns.expand(height, -1, -1)], -1).to(x.dtype)
        return x + self.projection(both.permute(2, 0, 1)[None])


# --- network ---------------------------------------------------------------------------------------------------------


class TokenBlock(nn.Module):
    """The block of class attention, which changes the pixels, too:

        token + γ1 mixer(LN1(x), LN1(token));  LN2(token) + γ2 mlp(LN2(token))
        x + γ1 LN1(x);                         2 LN2(x)

    Args:
        dim: channels C.
        heads: number of attention heads.
        mlp_ratio: hidden width of the MLP over C.
        layer_scale: initial value of γ1 and γ2.
        qkv_bias: whether queries, keys and values have a bias.
        norms_pixels: whether LN2 is of pixels, too; else they are 2 (x + γ1 LN1(x)).
        has_token: whether there is a token. Without one, it has the parts that change pixels alone.

    `forward(x (B, C, H, W)) -> x`; with `token (B, 1, C)`, a pair of both.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        layer_scale: float,
        qkv_bias: bool,
        norms_pixels: bool,
        has_token: bool,
    ):
        super().__init__()
        self.norms_pixels = norms_pixels
        self.norm1, self.scale1 = LayerNorm2d(dim), LayerScale(dim, layer_scale)
        if norms_pixels or has_token:
            self.norm2 = LayerNorm2d(dim)
        if has_token:
            self.mixer = FANClassAttention(dim, heads, qkv_bias)
            self.mlp, self.scale2 = Mlp(dim, mlp_ratio), LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, token: Tensor | None = None):
        normed = self.norm1(x)
        pixels = x + self.scale1(normed)
        if self.norms_pixels:
            pixels = self.norm2(pixels)
        pixels = pixels + pixels
        if token is None:
            return pixels
        token = self.norm2(token + self.scale1(self.mixer(normed, self.norm1(token))))
        return pixels, token + self.scale2(self.mlp(token))


class TokenStage(Stage):
    """The last level: blocks of class attention, and the class token where there is a head. The token goes into the
    notes, "token" (B, 1, C).

    Args:
        blocks: `TokenBlock`s.
        token: the class token, or None.
    """

    def __init__(self, blocks: Sequence[nn.Module], token: Tokens | None):
        super().__init__(nn.Identity(), blocks)
        self.cls_token = token

    def forward(self, x: Tensor, notes: Notes) -> Tensor:
        assert isinstance(self.blocks, Blocks)
        if self.cls_token is None:
            return self.blocks(x)
        token = self.cls_token(x.shape[0])
        for block in self.blocks:
            x, token = self.blocks.run(block, x, token)
        notes["token"] = token
        return x


class TokenHead(Head):
    """fc(after(token)): tokens (B, 1, C) -> logits (B, classes). Arguments as of `Head`."""

    pooling = "token"

    def vector(self, x: Tensor) -> Tensor:
        return self.after(x[:, 0])


class FAN(Pyramid):
    """FAN with TAP behind a stem of convolutions, for images of any size. Everything has the stride of the patches,
    rounded up.

    The dense form gives the maps behind the blocks and behind those of class attention, without norms.

    Args:
        dims: channels of the blocks, (C,).
        depths: number of the blocks, (depth,).
        heads: number of heads of all attentions.
        num_scales: number of averages of TAP, as of `TAP`; None for FAN without TAP.
        patch_size: stride of the stem, 8 or 16.
        class_blocks: number of blocks of class attention, at least one.
        norms_pixels: whether these norm the pixels, too (the authors' `tokens_norm`).
        qkv_bias: whether queries, keys and values have a bias.
        eta: initial value of layer scale.
        drop_path_rate: rate of stochastic depth, the same for all blocks; those of class attention have none.
        mlp_ratio: hidden width of the MLPs over C; one number, or one for each of `dims`, of which the blocks of class
            attention take the last.
        plugins, **common: as of `Pyramid`. The blocks of class attention are a stage of their own.
    """

    unused: Sequence[str] = ("mixers", "strides", "layer_scale")
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights
    stem_stages = 0  # those that are no stages of FAN's blocks

    def __init__(
        self,
        dims=(192,),
        depths=(12,),
        heads: int = 4,
        *,
        num_scales: int | None = 4,
        patch_size: int = 16,
        class_blocks: int = 2,
        norms_pixels: bool = True,
        qkv_bias: bool = True,
        eta: float = 1.0,
        mlp_ratio: float | Sequence[float] = 4.0,
        drop_path_rate: float = 0.0,
        **common,
    ):
        count = self.stem_stages + 1
        if len(dims) != count or len(depths) != count:
            raise ValueError(f"dims and depths must have {count} entries, got {tuple(dims)} and {tuple(depths)}")
        if patch_size not in (8, 16):
            raise ValueError(f"patch_size={patch_size} must be 8 or 16")
        check_whole("class_blocks", [class_blocks])  # without one the head would never see the image
        self.heads, self.num_scales, self.patch_size = heads, num_scales, patch_size
        self.norms_pixels, self.qkv_bias, self.eta, self.drop_path_rate = norms_pixels, qkv_bias, eta, drop_path_rate
        strides = [*[4, 8][: self.stem_stages], patch_size, patch_size]
        ratios = per_stage("mlp_ratio", mlp_ratio, count)
        common |= dict(strides=strides, mlp_ratio=(*ratios, ratios[-1]))
        super().__init__((*dims, dims[-1]), (*depths, class_blocks), **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(_conv_stem(in_channels, dim, self.patch_size), FourierPosition(dim))

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        channels = ChannelProcessing(dim, self.heads, self.mlp_ratio[stage], self.qkv_bias)
        block = Block(dim, FANAttention(dim, self.heads, self.qkv_bias), channels, self.drop_path_rate, self.eta)
        if self.num_scales is not None:
            block.before = TAP(dim, self.num_scales)
        return block

    def make_stage(self, stage: int, rates: Sequence[float]) -> Stage:
        if stage <= self.stem_stages:
            return super().make_stage(stage, rates)
        dim, has_token = self.dims[-1], self.num_classes is not None
        options = (self.heads, self.mlp_ratio[-1], self.eta, self.qkv_bias, self.norms_pixels, has_token)
        return TokenStage([TokenBlock(dim, *options) for _ in rates], Tokens(1, dim) if has_token else None)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return TokenHead(dim, num_classes, after=nn.LayerNorm(dim, eps=1e-6))

    def head_input(self, x: Tensor, notes: Notes) -> Tensor:
        """The class token (B, 1, C); in the dense form, which has none, the map."""
        return notes.get("token", x)

    @property
    def answer_layers(self) -> list[str]:
        """As of `Backbone`; the class token reads the pixels before the last level changes them."""
        return super().answer_layers[: -1 if self.head is not None else None]

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        token = [] if self.num_classes is not None else [r"(cls_token|blocks\.\d+\.(mixer|mlp|scale2))\."]
        if token and not self.norms_pixels:
            token.append(r"blocks\.\d+\.norm2\.")
        return [*super().checkpoint_optional, *(rf"^stages\.{self.stem_stages + 1}\.{name}" for name in token)]


def _conv_stem(in_channels: int, dim: int, patch_size: int) -> nn.Sequential:
    """3x3 convolutions of stride 2 with batch norms, GELU between; each has twice the channels of the one before."""
    steps = patch_size.bit_length() - 1
    widths = [in_channels, *(dim // 2**n for n in reversed(range(steps)))]
    layers: list[nn.Module] = []
    for before, width in zip(widths, widths[1:]):
        layers += [ConvNorm(before, width, 3, stride=2), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class ConvNeXtBlock(nn.Module):
    """x + γ mlp(LN(depth-wise 7x7 convolution of x)); γ is 1e-6 at first. Source: ConvNeXt, arXiv 2201.03545.

    Args:
        dim: channels C.
        mlp_ratio: hidden width of the MLP over C.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, mlp_ratio: float):
        super().__init__()
        self.mix, self.norm = depthwise(dim, 7), LayerNorm2d(dim)
        self.mlp, self.scale = Mlp(dim, mlp_ratio), LayerScale(dim, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(self.mlp(self.norm(self.mix(x))))


class FANHybrid(FAN):
    """FAN with TAP behind two stages of ConvNeXt, for images of any size: maps of strides 4, 8, 16 and 16, rounded
    down. Smaller images are filled up to 16 pixels.

    The dense form gives, without norms, the maps of both stages of ConvNeXt, those behind the blocks, and those behind
    the blocks of class attention, as the authors' for segmentation (who declare stride 32 for the last).

    Args:
        dims: channels of the stages of ConvNeXt and of the blocks, three.
        depths: numbers of blocks, likewise.
        heads, num_scales, class_blocks, norms_pixels, qkv_bias, eta, mlp_ratio, drop_path_rate, plugins, **common: as
            of `FAN`. The stages of ConvNeXt have no stochastic depth.
    """

    unused = ("patch_size",)
    stem_stages = 2
    min_size = 16
    rounds_up = False

    def __init__(self, dims=(128, 256, 384), depths=(3, 3, 10), heads: int = 8, **common):
        super().__init__(dims, depths, heads, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, dim, 4, 4), LayerNorm2d(dim))

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        half = nn.Conv2d(in_dim, dim, 2, 2)
        return nn.Sequential(LayerNorm2d(in_dim), half) if stage == 1 else nn.Sequential(half, FourierPosition(dim))

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        if stage < self.stem_stages:
            return ConvNeXtBlock(dim, self.mlp_ratio[stage])
        return super().make_block(stage, index, dim, drop_path)


def _fan(dim: int, depth: int, heads: int) -> dict:
    return dict(dims=(dim,), depths=(depth,), heads=heads)


def _hybrid(dim: int, depth: int, heads: int, second: int = 3) -> dict:
    return dict(dims=(128, 256, dim), depths=(3, second, depth), heads=heads)


# Parameters and multiply-adds are counted; of the accuracies, one was published. The drop path is that of the base
# hybrid, the one recipe that was.
VARIANTS = {
    "tap_fan_tiny_12_p16": Variant(_fan(192, 12, 4), 7_404_688, 1.49),
    "tap_fan_small_12_p16": Variant(_fan(384, 12, 8), 28_513_048, 5.49),
    "tap_fan_base_18_p16": Variant(_fan(448, 18, 8), 54_643_360, 10.7),
    "tap_fan_large_24_p16": Variant(_fan(480, 24, 10), 80_992_468, 16.0),
}
HYBRID_VARIANTS = {
    "tap_fan_tiny_8_hybrid": Variant(_hybrid(192, 8, 8), 7_523_752, 3.65),
    "tap_fan_small_12_hybrid": Variant(_hybrid(384, 10, 8), 26_257_704, 7.01),
    "tap_fan_base_16_hybrid": Variant(_hybrid(448, 16, 8), 50_735_528, 11.8, 84.3, drop_path=0.35),
    "tap_fan_large_16_hybrid": Variant(_hybrid(480, 22, 10, second=5), 77_238_644, 17.8),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------


def _rules(first: int, stem: Rules) -> Rules:
    """Of a network whose stage `first` has the blocks of FAN."""
    return [
        *stem,
        (r"^blocks\.", rf"stages.{first}.blocks."),
        (r"^cls_attn_blocks\.", rf"stages.{first + 1}.blocks."),
        (r"^cls_token$", rf"stages.{first + 1}.cls_token.weight"),
        (r"^norm\.", r"head.after."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        *BLOCK_RULES,
    ]


# of a block of FAN, whatever stands before it
BLOCK_RULES: Rules = [
    (r"(^|\.)gamma([12])$", r"\1scale\2.gamma"),
    (r"(^|\.)attn\.", r"\1mixer."),
    (r"(^|\.)mlp\.norm_v\.", r"\1mlp.norm."),
    (r"(^|\.)mlp\.mlp_v\.gamma$", r"\1mlp.mlp.scale.gamma"),
    (r"(^|\.)mlp\.mlp_v\.dwconv\.conv1\.", r"\1mlp.mlp.local.0."),
    (r"(^|\.)mlp\.mlp_v\.dwconv\.bn\.", r"\1mlp.mlp.local.2."),
    (r"(^|\.)mlp\.mlp_v\.dwconv\.conv2\.", r"\1mlp.mlp.local.3."),
    (r"(^|\.)mlp\.mlp_v\.", r"\1mlp.mlp."),
    (r"(^|\.)dilation_predictor\.proj\.0\.", r"\1before.predict.conv."),
    (r"(^|\.)dilation_predictor\.proj\.1\.", r"\1before.predict.norm."),
    (r"(^|\.)dilation_predictor\.proj\.2\.", r"\1before.mix."),
]
RULES = _rules(
    0,
    [
        (r"^patch_embed\.proj\.(\d)\.0\.", r"stem.0.\1.conv."),
        (r"^patch_embed\.proj\.(\d)\.1\.", r"stem.0.\1.norm."),
        (r"^pos_embed\.token_projection\.", r"stem.1.projection."),
    ],
)
HYBRID_RULES = _rules(
    2,
    [
        (r"^patch_embed\.backbone\.stem\.", r"stem."),
        (r"^patch_embed\.backbone\.(stages\.\d\.blocks\.\d+)\.conv_dw\.", r"\1.mix."),
        (r"^patch_embed\.backbone\.(stages\.\d\.blocks\.\d+)\.gamma$", r"\1.scale.gamma"),
        (r"^patch_embed\.backbone\.(head|norm_pre)\.", None),
        (r"^patch_embed\.backbone\.", r""),
        (r"^patch_embed\.proj\.", r"stages.2.downsample.0."),
        (r"^pos_embed\.token_projection\.", r"stages.2.downsample.1.projection."),
    ],
)

register(FAN, VARIANTS, RULES)
register(FANHybrid, HYBRID_VARIANTS, HYBRID_RULES)
