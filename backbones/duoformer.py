"""DuoFormer: attention over the scales of a convolutional pyramid, region by region, then over the regions.

"DuoFormer: Leveraging Hierarchical Visual Representations by Local and Global Attention", arXiv 2407.13920, and
"DuoFormer: Leveraging Hierarchical Representations by Local and Global Attention Vision Transformer", MIDL 2025, arXiv
2506.12982; https://github.com/xiaoyatang/duoformer_TCGA (no licence), whose weights load.

A pixel of the coarsest map of the pyramid, 32 x 32 pixels of the image, is a region. Every map has s x s pixels for a
region (1, 2, 4 and 8 in a ResNet). All of them, projected to one width, and one scale token are the tokens of the
region:

    scale token | 1 of the coarsest map | 4 of the next | 16 | 64      6, 22 or 86 tokens for 2, 3 or 4 scales

Scale attention works inside each region, so its cost is linear in the size of the image. Of every region the scale
token goes on to patch attention, with a class token. The authors list which pixel belongs to which token in tables for
49 regions; here the maps are cut by views and copied once, whatever their size. The order of the 4 is by columns, that
of the 16 and 64 by rows, as in the tables: the position of a token hangs on it.

As the authors' class does not construct (it passes on two words that nobody takes), the records of the tests are of its
parts and of a copy without these words.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoint
from ..registry import MIXERS, MODELS
from .layers import (
    Attention,
    Block,
    Blocks,
    ClassPositionTable,
    ConvNorm,
    Head,
    LayerNorm2d,
    Mlp,
    Pointwise,
    Tokens,
    fill,
)
from .skeletons.backbone import Backbone, Notes
from .skeletons.options import check_whole, drop_path_rates, image_sides, per_stage
from .zoo import Rules, Variant, register

SCALE_TOKENS = ("random", "channel")
BY_COLUMNS = 2  # side of the blocks whose pixels are listed column by column
STD = 0.036  # of the initial tokens and positions

# --- regions ---------------------------------------------------------------------------------------------------------


def to_regions(maps: Sequence[Tensor], sides: Sequence[int], first: Tensor | None = None) -> Tensor:
    """The tokens of every region, the coarse maps first.

    Args:
        maps: (B, C, s · h, s · w) each, from fine to coarse.
        sides: pixels s of each map along a side of a region.
        first: (B, h, w, K, C), tokens before those of the maps, or None.

    Returns:
        (B, h, w, T, C); T is K and the sum of s² over the maps.
    """
    parts = [] if first is None else [first]
    for x, side in zip(reversed(maps), reversed(sides)):
        rows = x.permute(0, 2, 3, 1).unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, h, s, w, s, C)
        if side == BY_COLUMNS:
            parts += [column.transpose(2, 3) for column in rows.unbind(4)]
        else:
            parts += rows.unbind(2)
    return torch.cat(parts, dim=3)


def from_regions(tokens: Tensor, first: int, side: int) -> Tensor:
    """The map (B, C, s · h, s · w) that `to_regions` made the tokens (B, h, w, T, C) from number `first` on of.

    Args:
        tokens: as `to_regions` gives them.
        first: number of the first token.
        side: pixels s of the map along a side of a region.
    """
    block = tokens[..., first : first + side**2, :].unflatten(3, (side, side))
    row, column = (4, 3) if side == BY_COLUMNS else (3, 4)
    return block.permute(0, 1, row, 2, column, 5).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


# --- operators -------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class ScaleAttention(nn.Module):
    """Scale attention of one map: the pixels of a region and their means over larger and larger blocks look at each
    other, and the pixels go on. The form for any network; the paper has maps of a pyramid instead of the means.

    Args:
        dim, heads, qkv_bias: as of `Attention`.
        scales: number of resolutions n; a region has 2ⁿ⁻¹ x 2ⁿ⁻¹ pixels. Maps are filled up to whole regions by zeros.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Its cost is linear in the pixels.
    """

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True, scales: int = 4):
        super().__init__()
        check_whole("ScaleAttention: scales", [scales])
        self.attention = Attention(dim, heads, qkv_bias)
        self.sides = [2**i for i in reversed(range(scales))]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        side = self.sides[0]
        maps = [fill(x, side)]
        for _ in self.sides[1:]:
            maps.append(F.avg_pool2d(maps[-1], 2))
        tokens = to_regions(maps, self.sides)
        mixed = as_tokens(self.attention(as_maps(tokens)), tokens.shape)
        return from_regions(mixed, tokens.shape[3] - side**2, side)[..., :height, :width]


def as_maps(tokens: Tensor) -> Tensor:
    """Tokens (B, h, w, T, C) as a map of height one for each region, (B · h · w, C, 1, T), in channels-last memory."""
    return tokens.flatten(0, 2).mT.unsqueeze(2)


def as_tokens(x: Tensor, shape: Sequence[int]) -> Tensor:
    """What `as_maps` gave, as tokens of `shape` again."""
    return x.squeeze(2).mT.reshape(shape)


class ChannelToken(nn.Module):
    """The scale token of every region from the channels of all maps: these, brought to the size of the coarsest, side
    by side, through four 3x3 convolutions.

    Every halving is a 3x3 convolution of stride 2, the last one of each map a maximum.

    Args:
        channels: channels of the maps, from fine to coarse.
        sides: pixels of each map along a side of a region, powers of two.
        dim: channels C of the token.

    `forward(maps) -> (B, C, h, w)`.
    """

    def __init__(self, channels: Sequence[int], sides: Sequence[int], dim: int):
        super().__init__()
        if odd := [side for side in sides if side & (side - 1)]:
            raise ValueError(
                "scale_token='channel' halves the maps of the pyramid down to the coarsest, and one of them has "
                f"{odd[0]} pixels along a side of a region; scale_token='random' takes any"
            )
        self.shrink = nn.ModuleList(self._shrink(dim, side) for dim, side in zip(channels, sides))
        steps: list[nn.Module] = []
        for width in (sum(channels), dim, dim, dim):
            steps += [ConvNorm(width, dim, 3, bias=True), nn.ReLU(inplace=True)]
        self.mix = nn.Sequential(*steps)

    @staticmethod
    def _shrink(dim: int, side: int) -> nn.Sequential:
        halvings = side.bit_length() - 1
        convs = [nn.Conv2d(dim, dim, 3, 2, 1) for _ in range(halvings - 1)]
        return nn.Sequential(*convs, *([nn.MaxPool2d(2)] if halvings else []))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.mix(torch.cat([shrink(x) for shrink, x in zip(self.shrink, maps)], dim=1))


class Projection(Pointwise):
    """The 1x1 convolution that brings a map of the pyramid to the width of the tokens."""

    def reset_weights(self) -> None:
        assert self.bias is not None
        nn.init.kaiming_normal_(self.weight)
        nn.init.normal_(self.bias, std=1e-6)


class RegionBlock(Block):
    """The pre-norm block of the tokens of all regions: an image drops a branch in all of its regions, or in none. Args:
    as of `Block`.

    `forward(tokens (B, h, w, T, C)) -> (B, h, w, T, C)`.
    """

    places = ()  # which are of maps

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        mixed = self.scale1(self.mixer(self.norm1(as_maps(tokens))))
        tokens = tokens + self.drop_path(as_tokens(mixed, tokens.shape))
        return tokens + self.drop_path(as_tokens(self.scale2(self.mlp(self.norm2(as_maps(tokens)))), tokens.shape))


class ScaleStage(nn.Module):
    """Pre-norm blocks whose attention is inside a region, and a position for each token, the same for all regions.

    Args:
        dim: channels C.
        heads: number of attention heads.
        sides: pixels of each map along a side of a region, from fine to coarse.
        drop_path_rates: rate of stochastic depth of each block, of which there are so many.
        mlp_ratio, layer_scale: of each block, as of `Pyramid`.
        qkv_bias: as of `Attention`.

    `forward(tokens (B, h, w, T, C)) -> (B, h, w, T, C)`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        sides: Sequence[int],
        drop_path_rates: Sequence[float],
        mlp_ratio: Sequence[float],
        layer_scale: Sequence[float | None],
        qkv_bias: bool = True,
    ):
        super().__init__()
        self.side = sides[0]
        self.position = Tokens(1 + sum(side**2 for side in sides), dim)
        self.blocks = Blocks(
            RegionBlock(dim, Attention(dim, heads, qkv_bias), Mlp(dim, ratio), rate, scale, norm=LayerNorm2d)
            for rate, ratio, scale in zip(drop_path_rates, mlp_ratio, layer_scale)
        )

    def reset_weights(self) -> None:
        nn.init.trunc_normal_(self.position.weight, std=STD)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks(tokens + self.position.weight)

    def attention_maps(self, tokens: Tensor, place: tuple[int, int]) -> Tensor:
        """How the scale token of every region looks at the pixels of the finest map in the last block, whatever the
        place, by head: (B, heads, s · h, s · w). The sum over a region is 1 less what goes to its other tokens."""
        x = tokens + self.position.weight
        last: Any = self.blocks[-1]
        for block in self.blocks[:-1]:
            x = block(x)
        maps = last.mixer.attention_maps(last.norm1(as_maps(x)), (0, 0)).squeeze(2).mT  # (B · h · w, T, heads)
        return from_regions(maps.unflatten(0, tokens.shape[:3]), tokens.shape[3] - self.side**2, self.side)


class PatchStage(nn.Module):
    """Patch attention: a class token joins the regions, a position is added, and attention follows attention, without
    norms, residuals and MLPs.

    Every layer begins with weights that keep the size of what it reads: behind twelve of them without a residual,
    nothing would be left otherwise. (How the authors' begin was not to be found.)

    Args:
        dim: channels C.
        depth: number of attentions.
        heads: number of attention heads.
        size: height and width of the table of positions, in regions.
        qkv_bias: as of `Attention`.

    `forward(x (B, C, h, w)) -> (B, 1 + h · w, C)`, the class token first.
    """

    def __init__(self, dim: int, depth: int, heads: int, size: int | Sequence[int], qkv_bias: bool = True):
        super().__init__()
        self.cls_token = Tokens(1, dim)
        self.position = ClassPositionTable(dim, size)
        self.blocks = Blocks(Attention(dim, heads, qkv_bias) for _ in range(depth))

    def reset_weights(self) -> None:
        nn.init.normal_(self.cls_token.weight, std=STD)
        nn.init.trunc_normal_(self.position.weight, std=STD)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)

    def _joined(self, x: Tensor) -> Tensor:
        """The class token and the regions as a map of height one, (B, C, 1, 1 + h · w)."""
        token = self.cls_token(x.shape[0]) + self.position.row
        return torch.cat([token, self.position(x).flatten(2).mT], dim=1).mT.unsqueeze(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self._joined(x)).squeeze(2).mT

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the class token looks at every region in the last layer, whatever the place, by head: (B, heads, h, w).
        The sum is 1 less what goes to the token itself."""
        y = self._joined(x)
        last: Any = self.blocks[-1]
        for attention in self.blocks[:-1]:
            y = attention(y)
        return last.attention_maps(y, (0, 0))[..., 1:].unflatten(-1, x.shape[-2:]).squeeze(2)


class PatchHead(Head):
    """fc of the class token behind patch attention.

    The authors compute a norm there and throw its result away. `after` keeps its two vectors, so that their files have
    a place for all they hold; nothing reads it, and it takes no gradients.

    Args:
        dim, num_classes: as of `Head`.
        patch_stage: the `PatchStage`.
    """

    pooling = "token"

    def __init__(self, dim: int, num_classes: int, patch_stage: PatchStage):
        super().__init__(dim, num_classes, after=nn.LayerNorm(dim).requires_grad_(False))
        self.patch_stage = patch_stage

    def vector(self, x: Tensor) -> Tensor:
        return self.patch_stage(x)[:, 0]


# --- network ---------------------------------------------------------------------------------------------------------


class Cropped(nn.Module):
    """A map without what filling up the image has added to it."""

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return x[..., : size[0], : size[1]]


class FromRegions(Cropped):
    """The map of one scale, put back together from the regions. Args: as of `from_regions`."""

    def __init__(self, first: int, side: int):
        super().__init__()
        self.first, self.side = first, side

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return super().forward(from_regions(x, self.first, self.side), size)


OF_THE_NETWORK = ("num_classes", "out_indices", "in_channels", "frozen_stages", "norm_eval", "grad_checkpointing")


def make_pyramid(pyramid: str | Mapping, in_channels: int) -> Backbone:
    """The backbone of the option `pyramid`, which gives all its maps."""
    named = dict(type="NamedBackbone", name=pyramid) if isinstance(pyramid, str) else dict(pyramid)
    if "type" not in named:
        raise ValueError(f"pyramid={named} does not say its type; it is the name of a variant, or dict(type=..., ...)")
    if taken := [name for name in OF_THE_NETWORK if name in named]:
        raise ValueError(f"pyramid: {taken[0]}={named[taken[0]]} is an option of the network around the pyramid")
    kind = named["type"]
    if isinstance(kind, str) and "." not in kind:  # whatever the scope of the config is, mmdet's ResNet is no pyramid
        named["type"] = f"attlas.{kind}"
    network = MODELS.build(dict(**named, out_indices=None, in_channels=in_channels))
    if not isinstance(network, Backbone):
        raise ValueError(f"pyramid: type={kind!r} must be a backbone of Attlas, not {type(network).__name__}")
    if uneven := [stride for stride in network.out_strides if network.out_strides[-1] % stride]:
        raise ValueError(f"pyramid: strides {network.out_strides} must divide the last; {uneven[0]} does not")
    return network


class DuoFormer(Backbone):
    """DuoFormer: a classifier, or a backbone that gives the maps behind scale attention.

    Images of any size are filled up to whole regions by zeros below and on the right; the table of positions of the
    regions is resized. The pyramid may be any backbone of Attlas.

    The dense form is ours: the tokens behind the scale blocks are put back into the maps that they came from, each
    behind a norm of its own. There is no patch attention in it. The maps of the pyramid that are no scale (with 3
    scales, the one of stride 4) are given as they are.

    Args:
        dim: channels C of the tokens.
        depth: number of scale blocks, and of patch attentions.
        heads: number of attention heads.
        pyramid: name of a variant, or dict(type=..., **options), of the backbone that the maps come from.
            `dict(type="NamedBackbone", name="resnet50", pretrained=...)` begins with published weights.
        scales: number of maps that the tokens come from, the coarsest ones; at least 2.
        scale_token: "random" for a learned token, the same for all regions; "channel" for one that convolutions make
            of all maps of the pyramid.
        patch_attention: whether patch attention makes the vector of the classifier; else it is the mean of the scale
            tokens behind a norm (ours: the authors' switch does nothing that was to be found).
        img_size: side of the image for which the table of positions is built, or its height and width.
        mlp_ratio: hidden width of the MLPs over C; one number, or one for each block.
        qkv_bias: whether queries, keys and values of all attentions have a bias.
        drop_path_rate: rate of stochastic depth of the last scale block; it grows linearly up to there. The authors
            have none.
        layer_scale: initial value of the learned factors in the scale blocks, None for none; one, or one for each.
        **common: of `Backbone`. `frozen_stages` counts those of the pyramid: 4 keep a ResNet as it is.
    """

    level_modules = "outputs"
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        pyramid: str | Mapping = "resnet50",
        scales: int = 3,
        scale_token: str = "random",
        patch_attention: bool = True,
        *,
        img_size: int | Sequence[int] = 224,
        mlp_ratio: float | Sequence[float] = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        layer_scale: float | Sequence[float | None] | None = None,
        in_channels: int = 3,
        **common,
    ):
        if scale_token not in SCALE_TOKENS:
            raise ValueError(f"DuoFormer: scale_token={scale_token!r} must be one of {SCALE_TOKENS}")
        maps = make_pyramid(pyramid, in_channels)
        channels, strides = maps.out_channels, maps.out_strides
        own = len(strides) - scales
        if own < 0:
            raise ValueError(f"DuoFormer: scales={scales} must be from 2 to {len(strides)}, the maps of the pyramid")
        super().__init__([*channels[:own], *[dim] * scales], strides, in_channels=in_channels, **common)
        if self.out_indices[-1] < own:
            raise ValueError(
                f"DuoFormer: out_indices={self.out_indices} with scales={scales} are maps of the pyramid alone; take "
                "the pyramid itself"
            )
        self.scales, self.region = scales, strides[-1]
        self.sides = [self.region // stride for stride in strides]
        self.pyramid = maps
        self.projections = nn.ModuleDict({str(i): Projection(channels[i], dim) for i in range(own, len(strides))})
        self.scale_token = Tokens(1, dim) if scale_token == "random" else ChannelToken(channels, self.sides, dim)
        firsts = [1 + sum(side**2 for side in self.sides[i + 1 :]) for i in range(len(strides))]
        self.outputs = nn.ModuleList(
            FromRegions(firsts[i], self.sides[i]) if i >= own else Cropped() for i in range(len(strides))
        )
        self.scale_stage = ScaleStage(
            dim,
            heads,
            self.sides[own:],
            drop_path_rates(drop_path_rate, depth),
            per_stage("mlp_ratio", mlp_ratio, depth, "blocks"),
            per_stage("layer_scale", layer_scale, depth, "blocks"),
            qkv_bias,
        )
        if self.num_classes is None:
            for i in self.out_indices:
                if i >= own:
                    self.norms[str(i)] = LayerNorm2d(dim)
        elif patch_attention:
            table = [-(-side // self.region) for side in image_sides(img_size)]
            self.head = PatchHead(dim, self.num_classes, PatchStage(dim, depth, heads, table, qkv_bias))
        else:
            self.head = Head(dim, self.num_classes, after=nn.LayerNorm(dim, eps=1e-6))
        self.checkpoint_rules = [*rules_of_pyramid(maps), *type(self).checkpoint_rules]
        self._made = {*maps.modules()}
        self.finish()
        del self._made

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        super().check_values(given)
        for name, least in (("dim", 1), ("depth", 1), ("heads", 1), ("scales", 2)):
            check_whole(name, [given.get(name, least)], least)

    def initialize(self, module: nn.Module) -> None:
        if module not in self._made:  # the pyramid has its initial weights, or published ones
            super().initialize(module)

    def reset_weights(self) -> None:
        if isinstance(self.scale_token, Tokens):
            nn.init.normal_(self.scale_token.weight, std=STD)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """The maps of the pyramid for the image, filled up to whole regions."""
        least = -(-self.pyramid.min_size // self.region) * self.region
        return self.pyramid(fill(image, self.region, least))

    def tokens(self, maps: Sequence[Tensor]) -> Tensor:
        """What the scale stage reads, (B, h, w, T, C), of the maps of the pyramid."""
        projected = [projection(maps[int(i)]) for i, projection in self.projections.items()]
        size = (maps[-1].shape[0], *maps[-1].shape[-2:])
        if isinstance(self.scale_token, Tokens):
            first = self.scale_token.weight.expand(*size, -1, -1)
        else:
            first = self.scale_token(maps).permute(0, 2, 3, 1).unsqueeze(3)
        return to_regions(projected, self.sides[-self.scales :], first)

    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        """As of `Backbone`; notes "scale_tokens", (B, C, h, w), what the head reads."""
        sizes = [(-(-image.shape[-2] // stride), -(-image.shape[-1] // stride)) for stride in self.strides]
        maps = self.maps(image)
        del image  # `check` may have copied it
        tokens = None
        for x, output, size in zip(maps, self.outputs, sizes):
            if isinstance(output, FromRegions):
                if tokens is None:
                    tokens = self.scale_stage(self.tokens(maps))
                    notes["scale_tokens"] = scale_tokens(tokens)
                x = tokens
            yield output(x, size)

    def forward_features(self, image: Tensor, notes: Notes | None = None) -> Tensor:
        return scale_tokens(self.scale_stage(self.tokens(self.maps(self.check(image)))))

    @property
    def answer_layers(self) -> list[str]:
        """As of `Backbone`; of a classifier those of the pyramid."""
        return super().answer_layers if self.head is None else [f"pyramid.{n}" for n in self.pyramid.answer_layers]

    def head_input(self, x: Tensor, notes: Notes) -> Tensor:
        return notes["scale_tokens"]

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        return [*super().checkpoint_optional, *map(within, self.pyramid.checkpoint_optional)]

    # --- training ----------------------------------------------------------------------------------------------------

    def freeze(self, stages: int) -> None:
        """As of `Backbone`; the stages are those of the pyramid."""
        self.pyramid.freeze(stages)
        super().freeze(stages)

    def frozen_parts(self) -> list[nn.Module]:
        return self.pyramid.frozen_parts()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        groups = {}
        for name, found in self.pyramid.group_matcher(coarse).items():
            pairs = [(found, None)] if isinstance(found, str) else found
            groups["stem" if name == "stem" else f"pyramid_{name}"] = [(within(e), suffix) for e, suffix in pairs]
        before = r"^(projections|scale_token|scale_stage\.position)\."
        blocks: list[tuple] = [(before, (0,)), (r"^scale_stage\.blocks\.(\d+)", None), (r"^norms", (99999,))]
        if coarse:
            blocks = [(r"^(projections|scale_token|scale_stage|norms)\.", None)]
        return dict(groups, blocks=blocks, head=self.head_groups())

    def head_groups(self) -> list[tuple[str, tuple[int, ...] | None]]:
        stage = r"^head\.patch_stage\."
        return [(rf"{stage}(cls_token|position)", (0,)), (rf"{stage}blocks\.(\d+)", None)]


def scale_tokens(tokens: Tensor) -> Tensor:
    """The first token of every region as a map (B, C, h, w)."""
    return tokens[..., 0, :].permute(0, 3, 1, 2)


def within(expression: str) -> str:
    """An expression for names of the pyramid, for those of the network."""
    return rf"^pyramid\.(?:{expression.removeprefix('^')})"


# The authors' variants differ in the pyramid, the token and the number of scales. Parameters and multiply-adds were
# counted; nothing on ImageNet was published. At 3 scales of a ResNet-18 the authors' projections are of 64, 128 and 256
# channels where 128, 256 and 512 arrive: their network, of 124,985,666 parameters, does not run, and ours has more.
def _variant(pyramid: str, scales: int, params: int, gflops: float | None, **options) -> Variant:
    options = dict(pyramid=pyramid, scales=scales, **options)
    return Variant(options, params, gflops, classes=2, interpolation="bilinear")


_channel = dict(scale_token="channel")

VARIANTS = {
    "duoformer_resnet18_3": _variant("resnet18", 3, 125_329_730, None),
    "duoformer_resnet18_4": _variant("resnet18", 4, 125_428_802, 368),
    "duoformer_resnet50_3": _variant("resnet50", 3, 139_725_634, 98.1),
    "duoformer_resnet50_4": _variant("resnet50", 4, 139_972_162, 371),
    "duoformer_resnet50_channel_3": _variant("resnet50", 3, 185_741_378, 101, **_channel),
    "duoformer_resnet50_channel_4": _variant("resnet50", 4, 185_987_906, 374, **_channel),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

# A ResNet of torchvision's is a list of its children there; of Lunit's and SwAV's, the network with its names.
CHILDREN = {"0": "conv1", "1": "bn1", **{str(i + 3): f"layer{i}" for i in (1, 2, 3, 4)}}


# Functions of the module, as networks that are pickled hold them.
def _listed(match: re.Match) -> str:
    return f"resnet_projector.{CHILDREN.get(match[1], match[1])}."


def _of_pyramid(match: re.Match, pyramid: Backbone) -> str:
    return f"pyramid.{checkpoint.rename(match[1], pyramid.checkpoint_rules)}"


def _shrinking(match: re.Match) -> str:
    return f"scale_token.shrink.{int(match[1]) - 1}.{int(match[2]) - 1}."


def _mixing(match: re.Match) -> str:
    return f"scale_token.mix.{2 * int(match[1])}."


RULES: Rules = [
    (r"^channel_token$", r"scale_token.weight"),
    (r"^chann_proj(\d)\.conv(\d)\.", _shrinking),
    (r"^chann_proj_all\.nConvs\.(\d)\.", _mixing),
    (r"^projection\.proj_heads(\d)\.", r"projections.\1."),
    (r"^vision_transformer\.", r""),
    (r"^pos_embed_for_scale$", r"scale_stage.position.weight"),
    (r"^pos_embed$", r"head.patch_stage.position.weight"),
    (r"^cls_token$", r"head.patch_stage.cls_token.weight"),
    (r"^fc_norm\.", r"head.after."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^blocks\.", r"head.patch_stage.blocks."),
    (r"^scaleBlocks\.", r"scale_stage.blocks."),
    (r"^(head\.patch_stage\.blocks\.\d+\.)attn\.", r"\1"),
    (r"(^|\.)attn\.", r"\1mixer."),
]


def rules_of_pyramid(pyramid: Backbone) -> Rules:
    """Rules for the pyramid in a file of the authors: its own, below its name."""
    return [
        (r"^resnet_projector\.(\d)\.", _listed),
        (r"^resnet_projector\.(.+)$", partial(_of_pyramid, pyramid=pyramid)),
    ]


register(DuoFormer, VARIANTS, RULES)
