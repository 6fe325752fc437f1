"""VOLO: outlook attention on a fine map, then attention to all pixels on a coarser one.

"VOLO: Vision Outlooker for Visual Recognition", TPAMI 2022, arXiv 2106.13112; https://github.com/sail-sg/volo
(Apache-2.0), whose weights load.

Outlook attention has no queries and keys. The mean of a patch of s x s pixels makes, by one linear layer, all k² x k²
weights with which a window of k x k values is mixed; windows overlap, and their results are added:

    out = linear(kernels.outlook_attention(linear_v(x), linear_a(mean pool(x))))

A map of stride 8 has blocks of it, with k = 3 and s = 2. A learned position joins at stride 16, where all further
blocks are. The head reads the map by two blocks of class attention, and labels every pixel by itself (token labeling).

Where paper and code differ, the code counts: the blocks of the first stage have no stochastic depth. The reference
takes images of one size. Here any size will do: the position is resized, and as its convolutions have it, what is left
over beside whole patches is lost.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.outlook_attention import outlook_attention
from ..registry import MIXERS
from .layers import (
    Attention,
    Block,
    ClassAttention,
    ClassBlock,
    ClassHead,
    Head,
    LayerNorm2d,
    Linear,
    Mlp,
    PositionTable,
    cut_box,
    heads_of,
    kept_share,
    relu_convs,
    swap_box,
)
from .skeletons.backbone import Notes
from .skeletons.options import image_sides, per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class OutlookAttention(nn.Module):
    """Outlook attention, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        kernel_size: side k of the windows, odd.
        stride: pixels s from one window to the next, at most (k + 1) / 2; all published networks have 2.
        qkv_bias: whether the projection to values has a bias.
        scale: factor of the logits; (C / heads)^-0.5 by default.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        kernel_size: int = 3,
        stride: int = 2,
        qkv_bias: bool = False,
        scale: float | None = None,
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"OutlookAttention: kernel_size={kernel_size} must be odd, so that a window has a center")
        if not 1 <= stride <= (kernel_size + 1) // 2:
            raise ValueError(
                f"OutlookAttention: stride={stride} must be from 1 to {(kernel_size + 1) // 2} for "
                f"kernel_size={kernel_size}, so that every pixel lies in a window"
            )
        if scale is not None and not 0 <= scale < math.inf:
            raise ValueError(f"OutlookAttention: scale={scale} must be at least 0 and finite")
        self.heads = heads_of("OutlookAttention", dim, heads)
        self.kernel_size, self.stride = kernel_size, stride
        self.scale = (dim // self.heads) ** -0.5 if scale is None else scale
        self.v = Linear(dim, dim, bias=qkv_bias)
        self.attn = Linear(dim, self.heads * kernel_size**4)
        self.proj = Linear(dim, dim)

    def _logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ⌈H / s⌉, ⌈W / s⌉, heads, k², k²)."""
        if self.stride > 1:  # a patch that the border cuts is the mean of what is there
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True)
        return self.attn(x.permute(0, 2, 3, 1)).unflatten(-1, (self.heads, *[self.kernel_size**2] * 2))

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x.permute(0, 2, 3, 1)).unflatten(-1, (self.heads, -1))
        y = outlook_attention(values, self._logits(x), self.stride, self.scale)
        return self.proj(y.flatten(3)).permute(0, 3, 1, 2)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W). The sum is the number of
        windows around the place, less what goes beyond the border."""
        (height, width), k, pad = x.shape[-2:], self.kernel_size, self.kernel_size // 2
        weights = (self._logits(x) * self.scale).softmax(-1)
        rows, columns = weights.shape[1:3]
        maps = weights.new_zeros(len(x), self.heads, (rows - 1) * self.stride + k, (columns - 1) * self.stride + k)
        for target in range(k * k):
            row, above = divmod(place[0] + pad - target // k, self.stride)
            column, left = divmod(place[1] + pad - target % k, self.stride)
            if above == left == 0 and 0 <= row < rows and 0 <= column < columns:
                window = weights[:, row, column, :, target].unflatten(-1, (k, k))
                top, start = row * self.stride, column * self.stride
                maps[..., top : top + k, start : start + k] += window
        return maps[..., pad : pad + height, pad : pad + width]


# --- network ---------------------------------------------------------------------------------------------------------

Norm = partial(LayerNorm2d, eps=1e-5)


class Downsample(nn.Module):
    """Whole patches of `ratio` x `ratio` pixels become pixels, and get a learned position.

    Args:
        in_dim, dim: channels of the input and of the output.
        ratio: side of the patches.
        size: height and width of the table of positions; None for no positions.
    """

    def __init__(self, in_dim: int, dim: int, ratio: int, size: Sequence[int] | None):
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, ratio, ratio)
        self.position = nn.Identity() if size is None else PositionTable(dim, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.position(self.proj(x))


class MixTokens(nn.Module):
    """In training, a box of every map is taken from another image of the batch, as CutMix does with images.

    Args:
        alpha: of the Beta(alpha, alpha) of the share of the area that an image keeps; 0 for no mixing.
        ratio: pixels of the map on a side of a token; boxes are of whole tokens.

    `forward(x (B, C, H, W))` gives the map, and the box in tokens or None. The random numbers are NumPy's global ones,
    as those of the mixing of images.
    """

    def __init__(self, alpha: float, ratio: int):
        super().__init__()
        if alpha < 0:
            raise ValueError(f"mix_tokens={alpha} must be at least 0 (off)")
        self.alpha, self.ratio = alpha, ratio

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int, int] | None]:
        if not (self.alpha and self.training):
            return x, None
        height, width = (size // self.ratio for size in x.shape[-2:])
        box = cut_box(height, width, 1 - float(np.random.beta(self.alpha, self.alpha)))
        return swap_box(x, [self.ratio * side for side in box]), box

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class PixelHead(Head):
    """Logits of every pixel: x (B, C, h, w) -> (B, classes, h, w). Arguments as of `Head`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenLabelHead(ClassHead):
    """The head of a class token and one of every pixel, behind one norm.

    Args:
        dim, num_classes, blocks, after: as of `ClassHead`; `after` is of rows and maps.

    `forward(x, pre_logits, notes)` gives in inference the logits of the token, and half the largest of each class over
    the pixels. In training they stand apart: (logits, logits of the pixels), and where the network has exchanged a
    box of tokens, `notes["box"]`, the share of the area that an image keeps. The logits of the pixels then stand where
    their pixels came from, so that an image's labels are right for all of its own.

    Source: token labeling, arXiv 2104.10858.
    """

    def __init__(self, dim: int, num_classes: int, blocks: Sequence[nn.Module], after: nn.Module):
        super().__init__(dim, num_classes, blocks, after, auxiliary=PixelHead(dim, num_classes))

    def forward(self, x: Tensor, pre_logits: bool = False, notes: Mapping[str, Any] | None = None):
        token = self.vector(x)
        if pre_logits or not self.num_classes:
            return token
        logits = self.fc(token)
        if self.training and not notes:
            return logits
        assert self.auxiliary is not None
        pixels = self.auxiliary(self.after(x))
        if not self.training:
            return logits + 0.5 * pixels.amax((2, 3))
        assert notes is not None
        if notes["box"] is None:
            return logits, pixels
        height, width = x.shape[-2:]
        return logits, swap_box(pixels, notes["box"]), kept_share(height, width, notes["box"])

    def fused(self) -> "TokenLabelHead":
        """Itself: inference needs both heads, and there are no batch norms."""
        return self


class VOLO(Pyramid):
    """VOLO, at any size of the image: maps of strides 8, 16, 16 and 16, of floor((H + 1) / 8) and floor((H + 1) / 16)
    rows. Smaller images are filled up to 16 pixels.

    The classifier gives in training (logits, logits of every pixel (B, num_classes, h, w)), and with `mix_tokens` the
    share of the area that an image keeps; in inference the logits and half the largest of each class over the pixels
    are added. In the dense form, which the authors did not release, there is neither class token nor class attention.
    Their `return_mean`, a head on the mean of the pixels, is left out: nothing published uses it.

    Args:
        dims, depths, mlp_ratio, layer_scale, drop_path_rate, **common: as of `Pyramid`. The first stage, of outlook
            attention, has no stochastic depth.
        heads: number of attention heads; one, or one for each stage.
        kernel_size, stride: as of `OutlookAttention`.
        stem_dim: channels inside the stem.
        img_size: side of the image for which the positions are built, or its height and width; other images get them
            resized.
        qkv_bias: whether values, and in the later stages queries and keys, have a bias.
        class_blocks: number of blocks of class attention in the head, at least one.
        pixel_logits: whether the head labels every pixel, too; without it, logits are those of the class token alone.
        mix_tokens: alpha of `MixTokens`; 1 in the authors' training. It takes a classifier with `pixel_logits`, whose
            loss mixes the targets likewise.
    """

    min_size = 16

    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(
        self,
        dims=(192, 384, 384, 384),
        depths=(4, 4, 8, 2),
        heads=(6, 12, 12, 12),
        mlp_ratio=3.0,
        kernel_size: int = 3,
        stride: int = 2,
        stem_dim: int = 64,
        img_size: int | Sequence[int] = 224,
        qkv_bias: bool = False,
        class_blocks: int = 2,
        pixel_logits: bool = True,
        mix_tokens: float = 0.0,
        **common,
    ):
        if len(dims) < 2:
            raise ValueError(f"dims={tuple(dims)} must be of one stage of outlook attention and at least one behind it")
        if class_blocks < 1:
            raise ValueError(f"class_blocks={class_blocks} must be at least 1, or the head would never see the image")
        if mix_tokens > 0 and not (common.get("num_classes") and pixel_logits):
            raise ValueError(
                f"mix_tokens={mix_tokens} exchanges parts of images, and without num_classes and pixel_logits nothing "
                f"tells the loss, got num_classes={common.get('num_classes')} and pixel_logits={pixel_logits}"
            )
        self.heads = per_stage("heads", heads, len(dims))
        self.kernel_size, self.stride, self.qkv_bias = kernel_size, stride, qkv_bias
        self.stem_dim, self.img_size = stem_dim, image_sides(img_size)
        self.class_blocks, self.pixel_logits = class_blocks, pixel_logits
        strides = [8] + [16] * (len(dims) - 1)
        super().__init__(dims, depths, strides=strides, mlp_ratio=mlp_ratio, **common)
        self.mix = MixTokens(mix_tokens, self.ratios[1])

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        rows, columns = (max(side, self.min_size) + 1 for side in (height, width))  # the first convolution rounds up
        return [(rows // stride, columns // stride) for stride in self.out_strides]

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(*relu_convs(in_channels, self.stem_dim), nn.Conv2d(self.stem_dim, dim, 4, 4))

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        size = [max(side, self.min_size) // self.strides[stage] for side in self.img_size]
        return Downsample(in_dim, dim, self.ratios[stage], size if stage == 1 else None)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        mixer: nn.Module
        if stage == 0:
            mixer = OutlookAttention(dim, self.heads[0], self.kernel_size, self.stride, self.qkv_bias)
            drop_path = 0.0
        else:
            mixer = Attention(dim, self.heads[stage], self.qkv_bias)
        return Block(dim, mixer, Mlp(dim, self.mlp_ratio[stage]), drop_path, self.layer_scale[stage], norm=Norm)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return Norm(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        blocks = [
            ClassBlock(dim, ClassAttention(dim, self.heads[-1], self.qkv_bias), Mlp(dim, self.mlp_ratio[-1]), norm=Norm)
            for _ in range(self.class_blocks)
        ]
        return (TokenLabelHead if self.pixel_logits else ClassHead)(dim, num_classes, blocks, after=Norm(dim))

    def embed(self, image: Tensor, notes: Notes) -> Tensor:
        x, notes["box"] = self.mix(self.stem(image))
        return x


def _size(width: int, depths: Sequence[int], heads: Sequence[int], **options) -> dict:
    """A first stage of `width` channels and three of twice that; heads of the first and of the others."""
    return dict(dims=(width, *[2 * width] * 3), depths=depths, heads=(heads[0], *[heads[1]] * 3), **options)


_d1 = _size(192, (4, 4, 8, 2), (6, 12))
_d2 = _size(256, (6, 4, 10, 4), (8, 16))
_d3 = _size(256, (8, 8, 16, 4), (8, 16))
_d4 = _size(384, (8, 8, 16, 4), (12, 16))
_d5 = _size(384, (12, 12, 20, 4), (12, 16), mlp_ratio=4.0, stem_dim=128)


def _fine_tuned(options: dict, params: int, top1: float, size: int, drop_path: float, crop: float, gflops=None):
    """Of larger images: the table of positions is larger."""
    return Variant(options | dict(img_size=size), params, gflops, top1, size=size, drop_path=drop_path, crop=crop)


# The authors give their recipe up to D3; the drop path of D4 and D5 is that of D3. The crops are timm's.
VARIANTS = {
    "volo_d1_224": Variant(_d1, 26_632_040, 6.8, 84.2, drop_path=0.1, crop=0.96),
    "volo_d1_384": _fine_tuned(_d1, 26_777_960, 85.2, 384, 0.1, 1.0),
    "volo_d2_224": Variant(_d2, 58_678_336, 14.1, 85.2, drop_path=0.2, crop=0.96),
    "volo_d2_384": _fine_tuned(_d2, 58_872_896, 86.0, 384, 0.2, 1.0),
    "volo_d3_224": Variant(_d3, 86_325_072, 20.6, 85.4, drop_path=0.5, crop=0.96),
    "volo_d3_448": _fine_tuned(_d3, 86_626_128, 86.3, 448, 0.5, 1.0),
    "volo_d4_224": Variant(_d4, 192_961_520, 43.8, 85.7, drop_path=0.5, crop=0.96),
    "volo_d4_448": _fine_tuned(_d4, 193_413_104, 86.8, 448, 0.5, 1.15),
    "volo_d5_224": Variant(_d5, 295_455_584, top1=86.1, drop_path=0.5, crop=0.96),
    "volo_d5_448": _fine_tuned(_d5, 295_907_168, 87.0, 448, 0.5, 1.15),
    "volo_d5_512": _fine_tuned(_d5, 296_091_488, 87.1, 512, 0.5, 1.15, gflops=412.0),
}

# --- the authors' checkpoints, and timm's ----------------------------------------------------------------------------

RULES: Rules = [
    # convolution, norm and ReLU, three times
    (
        r"^patch_embed\.conv\.(\d)\.",
        lambda m: f"stem.{int(m[1]) // 3 * 2}.{'norm' if int(m[1]) % 3 else 'conv'}.",
    ),
    (r"^patch_embed\.proj\.", r"stem.6."),
    (r"^network\.0\.", r"stages.0.blocks."),
    (r"^network\.1\.proj\.", r"stages.1.downsample.proj."),
    (r"^network\.(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"^pos_embed$", r"stages.1.downsample.position.weight"),
    (r"^cls_token$", r"head.cls_token.weight"),
    (r"^post_network\.", r"head.blocks."),
    (r"\.attn\.", r".mixer."),
    (r"^norm\.", r"head.after."),
    (r"^aux_head\.", r"head.auxiliary.fc."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(VOLO, VARIANTS, RULES)
