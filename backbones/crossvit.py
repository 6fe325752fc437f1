"""CrossViT: two vision transformers on small and large patches, whose class tokens read each other's patches.

"CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification", ICCV 2021, arXiv 2103.14899;
https://github.com/IBM/CrossViT (Apache-2.0), whose weights load; timm's load, too.

Each of a few multi-scale blocks runs both branches by themselves, and then exchanges class tokens. For the token c of
branch b and the patches P of the other branch o as they left its transformer blocks:

    c' = project(c)                                         # LN, GELU, linear: to the width of o
    c' = c' + softmax_j(q · k_j / √d) v_j                   # q of LN(c'); k, v of LN(c') and of all LN(P_j)
    c  = project back(c')                                   # LN, GELU, linear: to the width of b

The new token replaces the old one; the patches stay as they are. With N patches and C channels, keys and values would
cost 2 N C² operations. As there is one query for each of h heads, q · (W x_j) = (Wᵀ q) · x_j and Σ a_j (W x_j) =
W (Σ a_j x_j): here they cost 2 N C h, and are never built.

The paper writes the projections as linear maps; the code, which the weights are of, has a norm and GELU before them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import (
    Attention,
    Block,
    Blocks,
    ClassPositionTable,
    DropPath,
    Head,
    LayerNorm2d,
    Linear,
    Mlp,
    Patches,
    Tokens,
    any_free,
    fill,
    heads_of,
)
from .skeletons.backbone import Backbone, Notes
from .skeletons.options import check_whole, drop_path_rates, per_stage
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class CrossAttention(nn.Module):
    """Attention of class tokens to themselves and to all pixels, without keys and values; see above.

    Args:
        dim: channels C.
        heads: number of attention heads h; about C / 32 by default.
        qkv_bias: whether queries, keys and values have a bias. (Softmax cancels that of the keys.)
        scale: factor of the logits; 1 / √(C / h) by default.

    `forward(x (B, C, H, W), tokens (B, T, C))` gives a pair: zeros for the pixels, which stay as they are, and what the
    tokens read, (B, T, C). `forward(x) -> (B, C, H, W)`, for networks without class tokens, is ours: the mean of all
    pixels is the token, and every pixel gets what it reads. The cost is linear in the pixels.
    """

    takes_tokens = True

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True, scale: float | None = None):
        super().__init__()
        self.heads = heads_of("CrossAttention", dim, heads)
        self.scale = (dim // self.heads) ** -0.5 if scale is None else scale
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.k = Linear(dim, dim, bias=qkv_bias)
        self.v = Linear(dim, dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def _by_head(self, x: Tensor) -> Tensor:
        """The rows of a weight (C, C), or the entries of a bias (C,), by head: (h, C / h, ...)."""
        return x.unflatten(0, (self.heads, -1))

    def _weights(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Of the values of tokens and pixels (B, C, N), for every token and head: (B, h · T, T + N), sums of 1."""
        q = self.q(tokens).unflatten(-1, (self.heads, -1)) * self.scale
        looks = torch.einsum("bthd,hdc->bhtc", q, self._by_head(self.k.weight)).flatten(1, 2)
        logits = torch.cat([looks @ tokens.mT, looks @ x], dim=-1)
        if self.k.bias is not None:  # no weight depends on it; this way it has a gradient, of zero
            logits = logits + torch.einsum("bthd,hd->bht", q, self._by_head(self.k.bias)).flatten(1).unsqueeze(-1)
        return logits.softmax(-1)

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        pixels = x.flatten(2)
        read = pixels.mean(2).unsqueeze(1) if tokens is None else tokens
        of_tokens, of_pixels = self._weights(pixels, read).tensor_split([read.shape[1]], dim=-1)
        sums = (of_pixels @ pixels.mT + of_tokens @ read).unflatten(1, (self.heads, -1))
        y = torch.einsum("bhtc,hdc->bthd", sums, self._by_head(self.v.weight)).flatten(2)
        y = self.proj(y if self.v.bias is None else y + self.v.bias)
        return y.mT.unsqueeze(-1).expand_as(x) if tokens is None else (x.new_zeros(()).expand_as(x), y)

    def attention_maps(self, x: Tensor, place: tuple[int, int], tokens: Tensor | None = None) -> Tensor:
        """How the first token looks at every pixel, whatever the place, by head: (B, heads, H, W). The sum is 1 less
        what goes to the tokens."""
        pixels = x.flatten(2)
        read = pixels.mean(2).unsqueeze(1) if tokens is None else tokens
        weights = self._weights(pixels, read).unflatten(1, (self.heads, -1))
        return weights[:, :, 0, read.shape[1] :].unflatten(-1, x.shape[-2:])


# --- network ---------------------------------------------------------------------------------------------------------


class Fusion(nn.Module):
    """tokens + mixer(norm(x), norm(tokens)): the pre-norm block of a class token that reads a map, without an MLP.

    `forward(x (B, C, H, W), tokens (B, T, C)) -> (B, T, C)`.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float = 0.0):
        super().__init__()
        self.norm1, self.mixer = LayerNorm2d(dim), mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        _, y = self.mixer(self.norm1(x), self.norm1(tokens))
        return tokens + self.drop_path(y)


def _projection(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim, eps=1e-6), nn.GELU(), Linear(dim, out_dim))


BRANCHES = ("0", "1")  # small and large patches
OTHER = {"0": "1", "1": "0"}


class MultiScaleBlock(nn.Module):
    """Transformer blocks on each of two branches, then an exchange of class tokens, see above.

    Args:
        dims, depths, heads, mlp_ratio: channels, number of blocks, number of heads, and hidden width of the MLPs over
            the channels, of each branch. A token reads the other branch with that branch's heads.
        rates: rates of stochastic depth, one for each block of the longer branch; that of the last is the fusions'.
        qkv_bias: whether all queries, keys and values have a bias.
        qk_scale: as `scale` of `CrossAttention`.
        fusions: number of cross attentions, one behind the other. The first one alone reads the patches.
        runs, fuses: whether each branch has its blocks here, and whether its token reads the other branch.

    `forward(maps, tokens)`, each of both branches, (B, C, H, W) and (B, 1, C), gives both.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        mlp_ratio: Sequence[float] = (4.0, 4.0),
        rates: Sequence[float] | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        fusions: int = 1,
        runs: Sequence[bool] = (True, True),
        fuses: Sequence[bool] = (True, True),
    ):
        super().__init__()
        rates = [0.0] * max(depths) if rates is None else rates
        self.branches, self.projs, self.fusion, self.revert_projs = (nn.ModuleDict() for _ in range(4))
        for i, (name, dim) in enumerate(zip(BRANCHES, dims)):
            if runs[i]:
                self.branches[name] = Blocks(
                    Block(dim, Attention(dim, heads[i], qkv_bias), Mlp(dim, mlp_ratio[i]), rate)
                    for rate in rates[: depths[i]]
                )
            if fuses[i]:
                wide, count = dims[1 - i], heads[1 - i]
                self.projs[name] = _projection(dim, wide)
                self.fusion[name] = Blocks(
                    Fusion(wide, CrossAttention(wide, count, qkv_bias, qk_scale), rates[-1]) for _ in range(fusions)
                )
                self.revert_projs[name] = _projection(wide, dim)

    def run(self, branch: str, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks of one branch."""
        blocks: Any = self.branches[branch]
        for block in blocks:
            x, tokens = blocks.run(block, x, tokens)
        return x, tokens

    def fuse(self, maps: Mapping[str, Tensor], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The new tokens of the branches that read the other one."""
        found = {}
        fusions: Any
        for branch, fusions in self.fusion.items():
            token, x = self.projs[branch](tokens[branch]), maps[OTHER[branch]]
            for fusion in fusions:
                token, x = fusions.run(fusion, x, token), x[:, :, :0]  # the authors' next ones read the token alone
            found[branch] = self.revert_projs[branch](token)
        return found

    def forward(self, maps: Sequence[Tensor], tokens: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        ran = {branch: self.run(branch, x, token) for branch, x, token in zip(BRANCHES, maps, tokens)}
        x, token = ({branch: pair[i] for branch, pair in ran.items()} for i in (0, 1))
        return list(x.values()), list({**token, **self.fuse(x, token)}.values())


def conv_patches(in_channels: int, dim: int, patch_size: int) -> nn.Sequential:
    """Three convolutions with ReLU between, in place of one over whole patches, of 12 or 16 pixels: 4, then 3 or 2 x 2.

    Raises:
        ValueError: patches of another size, or channels that 4 does not divide.
    """
    if patch_size not in (12, 16):
        raise ValueError(f"conv_stem=True has patches of 12 or 16 pixels, got patch_size={patch_size}")
    if dim % 4:
        raise ValueError(f"conv_stem=True takes dims that are multiples of 4, got {dim}")
    second = nn.Conv2d(dim // 4, dim // 2, 3, 3) if patch_size == 12 else nn.Conv2d(dim // 4, dim // 2, 3, 2, 1)
    return nn.Sequential(
        nn.Conv2d(in_channels, dim // 4, 7, 4, 3),
        nn.ReLU(inplace=True),
        second,
        nn.ReLU(inplace=True),
        nn.Conv2d(dim // 2, dim, 3, 1 if patch_size == 12 else 2, 1),
    )


def resized(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """A map or an image at another height and width, "bicubic" or "bilinear", without antialiasing."""
    if not any_free((*size, *x.shape[-2:])) and tuple(x.shape[-2:]) == tuple(size):
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.interpolate(x.to(wide), tuple(size), mode=mode).to(x.dtype)


class Aligned(nn.Module):
    """A map of patches at a stride of the image.

    Args:
        stride: pixels of the image along a side of a pixel of the output; None to leave the map as it is.

    `forward(x, covered, size)`: `covered` is the height and width of the image that x spans, multiples of the stride;
    `size` that of the image without what it was filled up with, to which the output is cropped.
    """

    def __init__(self, stride: int | None):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, covered: Sequence[int], size: Sequence[int]) -> Tensor:
        if self.stride is None:
            return x
        height, width = ((n + self.stride - 1) // self.stride for n in size)
        return resized(x, [n // self.stride for n in covered], "bilinear")[..., :height, :width]

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class BranchLinear(nn.ModuleList):
    """The mean of what a linear layer for each branch makes of its part of a vector (B, sum of dims)."""

    def __init__(self, dims: Sequence[int], num_classes: int):
        super().__init__()
        self.dims = tuple(dims)
        for dim in dims:
            layer = nn.Linear(dim, num_classes)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
            self.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        small, large = (layer(part) for layer, part in zip(self, x.split(self.dims, dim=-1)))
        return torch.lerp(small, large, 0.5)


class BranchHead(Head):
    """The head of the class tokens of both branches, side by side: (B, sum of dims) -> (B, classes).

    Args:
        dims: widths of the branches.
        num_classes: as of `Head`.
    """

    pooling = "token"

    def __init__(self, dims: Sequence[int], num_classes: int):
        self.dims = tuple(dims)
        super().__init__(sum(dims), num_classes)

    def reset(self, num_classes: int) -> None:
        super().reset(0)
        self.num_classes = num_classes
        if num_classes:
            self.fc = BranchLinear(self.dims, num_classes)

    def vector(self, x: Tensor) -> Tensor:
        return x


class CrossViT(Backbone):
    """CrossViT: a classifier, or a backbone that gives maps of both branches.

    The classifier resizes every image, whatever its shape, to a square for each branch, as the authors do. It expects
    images of `img_size[0]` pixels, which the branch of small patches sees as they are.

    The dense form, which the authors do not have, keeps the shape of the image, and between the branches the ratio of
    `img_size`; tables of positions are resized. The maps of patches, whose pixels need not be a whole number of the
    image's, are resized bilinearly to `strides`. Levels are the branches of all blocks in turn: 0 and 1 of small and
    large patches in the first block, 2 and 3 in the second. `out_indices` defaults to the last two. A branch that no
    map comes from runs no further than a class token reads it. `frozen_stages` counts levels.

    Args:
        dims: channels of the branches.
        depths: for each multi-scale block the number of transformer blocks of the branches, at least one each.
        heads: number of attention heads; one, or one for each branch.
        patch_size: side of the patches; one, or one for each branch.
        img_size: side of the image that each branch sees in the classifier, a multiple of its `patch_size`.
        conv_stem: whether three convolutions make the patches (the dagger models), of 12 or 16 pixels.
        mlp_ratio: hidden width of the MLPs over the channels; one, or one for each branch.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the logits of cross attentions; 1 / √(channels of a head) by default.
        fusions: number of cross attentions, one behind the other, in the fusions; one, or one for each multi-scale
            block. Each counts as a block for `drop_path_rate`, and the further ones read nothing but the token. 0, as
            all published networks have it, is a single one that does not count.
        strides: strides of the maps of the branches in the dense form; a classifier has none.
        drop_path_rate: rate of stochastic depth of the last block; it grows linearly up to there.
        **common: of `Backbone`.
    """

    level_modules = "outputs"
    dense_names = ()
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(
        self,
        dims: Sequence[int] = (96, 192),
        depths: Sequence[Sequence[int]] = ((1, 4), (1, 4), (1, 4)),
        heads: int | Sequence[int] = 3,
        patch_size: int | Sequence[int] = (12, 16),
        img_size: int | Sequence[int] = (240, 224),
        *,
        conv_stem: bool = False,
        mlp_ratio: float | Sequence[float] = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        fusions: int | Sequence[int] = 0,
        strides: int | Sequence[int] = (8, 16),
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        **common,
    ):
        self.dims = per_stage("dims", dims, 2, "branches")
        self.depths = tuple(tuple(pair) for pair in depths)
        self.patch_size = per_stage("patch_size", patch_size, 2, "branches")
        self.img_size = per_stage("img_size", img_size, 2, "branches")
        self.map_strides = per_stage("strides", strides, 2, "branches")
        heads = per_stage("heads", heads, 2, "branches")
        mlp_ratio = per_stage("mlp_ratio", mlp_ratio, 2, "branches")
        self._check_options()
        count = len(self.depths)
        fusions = per_stage("fusions", fusions, count, "multi-scale blocks")
        classifies = common.get("num_classes") is not None
        if out_indices is None and not classifies:
            out_indices = (2 * count - 2, 2 * count - 1)
        scaled = [round(p * self.img_size[0] / n) for p, n in zip(self.patch_size, self.img_size)]
        super().__init__(
            self.dims * count, (scaled if classifies else self.map_strides) * count, out_indices=out_indices, **common
        )

        # how many blocks each branch runs through, and after how many its token reads the other one
        given = [1 + max((i // 2 for i in self.out_indices if i % 2 == branch), default=-1) for branch in (0, 1)]
        self.runs = [max(own, max(given) - 1) for own in given]
        self.fuses = [runs if classifies else max(0, runs - 1) for runs in self.runs]
        built = [branch for branch, runs in zip(BRANCHES, self.runs) if runs]
        dim, patch = dict(zip(BRANCHES, self.dims)), dict(zip(BRANCHES, self.patch_size))
        side = {branch: n // patch[branch] for branch, n in zip(BRANCHES, self.img_size)}
        make = conv_patches if conv_stem else Patches
        self.stem = nn.ModuleDict({b: make(self.in_channels, dim[b], patch[b]) for b in built})
        self.position = nn.ModuleDict({b: ClassPositionTable(dim[b], side[b]) for b in built})
        self.cls_token = nn.ModuleDict({b: Tokens(1, dim[b]) for b in built})
        lengths = [max(pair) + fusion for pair, fusion in zip(self.depths, fusions)]
        rates = iter(drop_path_rates(drop_path_rate, sum(lengths)))
        self.blocks = nn.ModuleList(
            MultiScaleBlock(
                self.dims,
                self.depths[k],
                heads,
                mlp_ratio,
                [next(rates) for _ in range(length)],
                qkv_bias,
                qk_scale,
                max(1, fusions[k]),
                [k < runs for runs in self.runs],
                [k < fuses for fuses in self.fuses],
            )
            for k, length in enumerate(lengths[: max(given)])
        )
        self.outputs = nn.ModuleList(
            Aligned(None if classifies or i not in self.out_indices else self.map_strides[i % 2])
            for i in range(2 * len(self.blocks))
        )
        self.norm = nn.ModuleDict({b: LayerNorm2d(dim[b]) for b, n in zip(BRANCHES, given) if n})
        if self.num_classes is not None:
            self.head = BranchHead(self.dims, self.num_classes)
        self.finish()

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        super().check_values(given)
        for name, least in (("dims", 1), ("patch_size", 1), ("img_size", 1), ("strides", 1), ("fusions", 0)):
            values = given.get(name, ())
            check_whole(name, values if isinstance(values, Sequence) else [values], least)
        depths = given.get("depths", ((1, 1),))
        pairs = depths if isinstance(depths, Sequence) else ()
        if not pairs or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs):
            raise ValueError(
                "depths must have the numbers of blocks of both branches for every multi-scale block, such as "
                f"((1, 4), (1, 4), (1, 4)), got {depths!r:.60}"
            )
        for pair in pairs:
            check_whole("depths", pair)
        scale = given.get("qk_scale")
        if scale is not None and not isinstance(scale, (int, float)):
            raise ValueError(f"qk_scale must be a number or None, got {scale!r:.60}")
        if "strides" in given and given.get("num_classes") is not None:
            raise ValueError(
                f"strides={given['strides']} are of the maps, and num_classes makes a classifier: give one"
            )

    def _check_options(self) -> None:
        for side, patch in zip(self.img_size, self.patch_size):
            if side % patch:
                near = max(1, side // patch) * patch
                raise ValueError(
                    f"img_size={self.img_size} must be multiples of patch_size={self.patch_size}, branch by branch: "
                    f"{side} is none of {patch}, but {near} and {near + patch} are"
                )

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _embed(self, branch: str, image: Tensor) -> tuple[Tensor, Tensor]:
        """The map of patches and the class token of a branch, with positions."""
        side, patch = self.img_size[int(branch)], self.patch_size[int(branch)]
        size = [side, side]
        if self.num_classes is None:  # whole patches
            unit = self.img_size[0] * patch
            size = [(n * side + unit - 1) // unit * patch for n in image.shape[-2:]]
        position: Any = self.position[branch]
        x = position(self.stem[branch](resized(image, size, "bicubic")))
        return x, self.cls_token[branch](image.shape[0]) + position.row

    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        """As of `Backbone`; notes "tokens", a dict of the branches' class tokens (B, 1, C). The map of a branch that
        has no blocks at its level is empty."""
        size = image.shape[-2:]
        if self.num_classes is None:
            image = fill(image, math.lcm(*self.map_strides))
        covered = image.shape[-2:]
        maps, tokens = {}, {}
        for name in self.stem:
            maps[name], tokens[name] = self._embed(name, image)
        block: Any
        for k, block in enumerate(self.blocks):
            for i, name in enumerate(BRANCHES):
                if name in block.branches:
                    maps[name], tokens[name] = block.run(name, maps[name], tokens[name])
                    yield self.outputs[2 * k + i](maps[name], covered, size)
                else:
                    yield image.new_empty(image.shape[0], self.dims[i], 0, 0)
            tokens.update(block.fuse(maps, tokens))
        notes["tokens"] = tokens

    def head_input(self, x: Tensor, notes: Notes) -> Tensor:
        """The class tokens of both branches behind their norms, side by side: (B, sum of dims)."""
        return torch.cat([norm(notes["tokens"][name][:, 0]) for name, norm in self.norm.items()], dim=-1)

    @property
    def answer_layers(self) -> list[str]:
        """As of `Backbone`; of a classifier the last block of both branches at every level."""
        if self.head is None:
            return super().answer_layers
        blocks: Any = self.blocks
        return [
            f"blocks.{k}.branches.{name}.{len(part) - 1}"
            for k, block in enumerate(blocks)
            for name, part in block.branches.items()
            if len(part)
        ]

    def normed(self, level: int, x: Tensor, notes: Notes) -> Tensor:
        name = BRANCHES[level % 2]
        return self.norm[name](x) if name in self.norm else x

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        absent = [rf"^(stem|position|cls_token)\.{b}\." for b in BRANCHES if b not in self.stem]
        absent += [rf"^norm\.{b}\." for b in BRANCHES if b not in self.norm]
        for b, runs, fuses in zip(BRANCHES, self.runs, self.fuses):
            absent += [rf"^blocks\.{k}\.branches\.{b}\." for k in range(runs, len(self.depths))]
            absent += [rf"^blocks\.{k}\.(projs|fusion|revert_projs)\.{b}\." for k in range(fuses, len(self.depths))]
        return [*super().checkpoint_optional, *absent]

    def frozen_parts(self) -> list[nn.Module]:
        whole, half = divmod(max(0, self.frozen_stages), 2)
        blocks: Any = self.blocks
        first = [block.branches["0"] for block in blocks[whole : whole + half] if "0" in block.branches]
        return [self.stem, self.position, self.cls_token, *blocks[:whole], *first]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks: list[tuple] = [
            (r"^blocks\.(\d+)\.branches\.\d\.(\d+)", None),
            (r"^blocks\.(\d+)", (9999,)),  # the exchange of tokens
        ]
        if coarse:
            blocks = [(r"^blocks\.(\d+)", None)]
        return dict(stem=r"^(stem|position|cls_token)", blocks=[*blocks, (r"^norm", (99999,))], head=[])


_small = dict(dims=(192, 384), heads=6)
_base = dict(dims=(384, 768), heads=12)
_9 = dict(dims=(128, 256), depths=((1, 3),) * 3, heads=4, mlp_ratio=3)
_15 = dict(dims=(192, 384), depths=((1, 5),) * 3, heads=6, mlp_ratio=3)
_18 = dict(dims=(224, 448), depths=((1, 6),) * 3, heads=7, mlp_ratio=3)
_dagger = dict(conv_stem=True)
_dagger_384 = dict(conv_stem=True, img_size=(408, 384))
_240: dict[str, Any] = dict(size=240, drop_path=0.1)
_408: dict[str, Any] = dict(size=408, drop_path=0.1, crop=1.0)

# The authors' names say 384 (or 224, which is left out here), the side that the second branch sees; images have 408 (or
# 240) pixels. The accuracies of the 384s are timm's with the published weights, the others are the paper's.
VARIANTS = {
    "crossvit_tiny": Variant({}, 7_014_800, 1.6, 73.4, **_240),
    "crossvit_small": Variant(_small, 26_856_272, 5.6, 81.0, **_240),
    "crossvit_base": Variant(_base, 105_025_232, 21.2, 82.2, **_240),
    "crossvit_9": Variant(_9, 8_553_296, 1.8, 73.9, **_240),
    "crossvit_15": Variant(_15, 27_528_464, 5.8, 81.5, **_240),
    "crossvit_18": Variant(_18, 43_271_408, 9.0, 82.5, **_240),
    "crossvit_9_dagger": Variant(_9 | _dagger, 8_776_592, 2.0, 77.1, **_240),
    "crossvit_15_dagger": Variant(_15 | _dagger, 28_209_008, 6.1, 82.3, **_240),
    "crossvit_18_dagger": Variant(_18 | _dagger, 44_266_976, 9.5, 82.8, **_240),
    "crossvit_15_dagger_384": Variant(_15 | _dagger_384, 28_500_080, None, 83.8, **_408),
    "crossvit_18_dagger_384": Variant(_18 | _dagger_384, 44_606_560, None, 84.2, **_408),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^patch_embed\.(\d)\.proj\.", r"stem.\1."),
    (r"^(pos_embed|cls_token)[._](\d)$", r"\1.\2.weight"),  # a dot in the authors' files, an underscore in timm's
    (r"^pos_embed\.", r"position."),
    (r"^head\.(\d)\.", r"head.fc.\1."),
    # of a multi-scale block, or of cross attention, alone, too
    (r"(^|\.)blocks\.(\d)\.(\d+)\.(?=norm|attn|mlp)", r"\1branches.\2.\3."),
    (r"(^|\.)fusion\.(\d)\.(?=norm|attn)", r"\1fusion.\2.0."),  # without a number where there is one
    (r"\.attn\.", r".mixer."),
    (r"(^|\.)w([qkv])\.", r"\1\2."),
]

register(CrossViT, VARIANTS, RULES)
