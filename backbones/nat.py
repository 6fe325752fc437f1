"""NAT and DiNAT: attention to the nearest pixels of every pixel.

"Neighborhood Attention Transformer", CVPR 2023, arXiv 2204.07143; "Dilated Neighborhood Attention Transformer",
arXiv 2209.15001; https://github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT), whose weights load.

    y_i = Σ_j softmax_j(q_i·k_j / √d + b[j - i]) v_j,   j in the κ x κ pixels around i, δ apart

At borders the window moves inwards: every pixel attends to κ² pixels, all of them real. b is a learned table for each
head. `kernels.neighborhood_attention` computes it (there also for sequences and volumes, strided, causal).

NAT has δ = 1 everywhere, DiNAT every second block the largest δ that fits a map of the training size. On a map shorter
than κδ the paper defines nothing and current kernels raise; the checkpoints were evaluated with a module that fills it
up, and so does this.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..kernels.neighborhood_attention import axis_windows, neighborhood_attention
from ..registry import MIXERS
from .layers import Block, Head, LayerNorm2d, Linear, Linear2d, Mlp, Patches, fill, heads_of
from .skeletons.backbone import FIXED_BY_WINDOWS
from .skeletons.isotropic import Isotropic
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class NeighborhoodAttention(nn.Module):
    """Multi-head neighborhood attention, see above.

    A map of less than κδ pixels in height or width gets rows below and columns on the right, whose pixels are zero
    before the projection; they are attended like others, and left out of the result.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        kernel_size: side κ >= 2 of the neighborhood, in pixels that are attended.
        dilation: distance δ >= 1 of these pixels.
        bias: whether the relative positions have a learned bias.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        scale: factor of the logits; (C / heads)^-0.5 by default.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    no_weight_decay = ("rpb",)

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        kernel_size: int = 7,
        dilation: int = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        scale: float | None = None,
    ):
        super().__init__()
        if kernel_size < 2 or dilation < 1:
            raise ValueError(
                "NeighborhoodAttention: kernel_size must be at least 2 and dilation at least 1, "
                f"got {kernel_size}, {dilation}"
            )
        self.heads = heads_of("NeighborhoodAttention", dim, heads)
        self.kernel_size, self.dilation = kernel_size, dilation
        self.scale = (dim // self.heads) ** -0.5 if scale is None else scale
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.empty(self.heads, *[2 * kernel_size - 1] * 2)) if bias else None
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)
        self.proj = Linear(dim, dim)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> q, k, v (B, H, W, heads, d), H and W at least κδ."""
        x = fill(x, least=self.kernel_size * self.dilation).permute(0, 2, 3, 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(3)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        y = neighborhood_attention(
            *self._split(x), self.kernel_size, dilation=self.dilation, scale=self.scale, bias=self.rpb
        )
        assert isinstance(y, Tensor)  # without return_lse
        return self.proj(y[:, :height, :width].flatten(3)).permute(0, 3, 1, 2)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W), κ² of them not zero;
        sums of 1, but for what falls on the filling of a small map."""
        q, k, _ = self._split(x)
        keys, relative = [], []
        for size, i in zip(q.shape[1:3], place):
            first, _, offset = axis_windows(size, self.kernel_size, self.dilation, 1, False, device=x.device)
            steps = torch.arange(self.kernel_size, device=x.device)
            keys.append(first[i] + self.dilation * steps)
            relative.append(offset[i] + steps)
        rows, columns = keys[0][:, None], keys[1]
        near = k[:, rows, columns]
        logits = torch.einsum("bhd,byxhd->bhyx", q[:, place[0], place[1]], near) * self.scale
        if self.rpb is not None:
            logits = logits + self.rpb[:, relative[0][:, None], relative[1]]
        maps = logits.new_zeros(*logits.shape[:2], *q.shape[1:3])
        maps[..., rows, columns] = logits.flatten(2).softmax(-1).view_as(logits)
        return maps[..., : x.shape[-2], : x.shape[-1]]


# --- networks --------------------------------------------------------------------------------------------------------

Norm = partial(LayerNorm2d, eps=1e-5)


class NAT(Pyramid):
    """NAT and DiNAT: transitions are overlapping convolutions.

    The dilations of DiNAT are of the task, and no file holds them. The variants have those of the classifiers; the
    authors' dense networks take ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3)) for COCO and
    ((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)) for ADE20K at 512 pixels. DiNAT_s has (1, 14) and (1, 8) in its
    second stage.

    Args:
        dims, depths, mlp_ratio, layer_scale, drop_path_rate, **common: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage.
        kernel_size: κ of the attention.
        dilations: for each stage a tuple, δ of the attention in its first blocks; they repeat.
        qkv_bias, scale: as of `NeighborhoodAttention`.
    """

    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    fixed_sizes = FIXED_BY_WINDOWS

    def __init__(
        self,
        dims=(64, 128, 256, 512),
        depths=(3, 4, 6, 5),
        heads=(2, 4, 8, 16),
        kernel_size=7,
        dilations=((1,), (1,), (1,), (1,)),
        mlp_ratio=3.0,
        *,
        qkv_bias: bool = True,
        scale: float | None = None,
        **common,
    ):
        self.heads = per_stage("heads", heads, len(dims))
        self.dilations = per_stage("dilations", dilations, len(dims))
        self.attention = dict(kernel_size=kernel_size, qkv_bias=qkv_bias, scale=scale)
        super().__init__(dims, depths, mlp_ratio=mlp_ratio, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(in_channels, dim // 2, 3, 2, padding=1), nn.Conv2d(dim // 2, dim, 3, 2, padding=1), Norm(dim)
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_dim, dim, 3, 2, padding=1, bias=False), Norm(dim))

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        dilation = _repeat(self.dilations[stage], index)
        mixer = NeighborhoodAttention(dim, self.heads[stage], dilation=dilation, **self.attention)
        return Block(dim, mixer, Mlp(dim, self.mlp_ratio[stage]), drop_path, self.layer_scale[stage], norm=Norm)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return Norm(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, before=Norm(dim))


def _repeat(values: Sequence[int], index: int) -> int:
    return values[index % len(values)]


class PatchMerging(nn.Module):
    """Half the size, rounded up: the channels of four pixels side by side, a norm and a linear layer.

    Source: Swin, arXiv 2103.14030.
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm = Norm(4 * in_dim)
        self.reduction = Linear2d(4 * in_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = fill(x, 2)
        fours = torch.cat([x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=1)
        return self.reduction(self.norm(fours))


class DiNATs(NAT):
    """DiNAT_s: stem and transitions of Swin, which do not overlap. Arguments as of `NAT`."""

    def __init__(
        self,
        dims=(96, 192, 384, 768),
        depths=(2, 2, 6, 2),
        heads=(3, 6, 12, 24),
        kernel_size=7,
        dilations=((1, 8), (1, 4), (1, 2), (1,)),
        mlp_ratio=4.0,
        **common,
    ):
        super().__init__(dims, depths, heads, kernel_size, dilations, mlp_ratio, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(Patches(in_channels, dim, 4), Norm(dim))

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return PatchMerging(in_dim, dim)


class NATIsotropic(Isotropic):
    """A plain transformer with neighborhood attention, without class token and absolute position. The papers do not
    mention the norm behind its patches; the published number of parameters holds one.

    Args:
        dim, depth, drop_path_rate, **common: as of `Isotropic`.
        heads: number of attention heads.
        kernel_size: κ of the attention.
        dilations: δ of the attention in the first blocks; they repeat.
    """

    unused = ("eps", "img_size", "position", "registers")
    eps = 1e-5

    fixed_sizes = FIXED_BY_WINDOWS

    def __init__(self, dim=384, depth=12, heads=12, kernel_size=7, dilations=(1,), **common):
        mixers = [
            dict(type="NeighborhoodAttention", heads=heads, kernel_size=kernel_size, dilation=_repeat(dilations, i))
            for i in range(depth)
        ]
        super().__init__(dim, depth, mixers, class_token=None, position=False, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(super().make_stem(in_channels, dim), Norm(dim))


def _width(dim: int, kernel_size: int = 7) -> dict:
    """Stages of 1, 2, 4 and 8 times `dim` channels, heads of 32 channels."""
    dims = tuple(dim * 2**i for i in range(4))
    return dict(dims=dims, heads=tuple(channels // 32 for channels in dims))


_mini = dict(_width(64), depths=(3, 4, 6, 5), mlp_ratio=3.0)
_tiny = dict(_width(64), depths=(3, 4, 18, 5), mlp_ratio=3.0)
_small = dict(_width(96), depths=(3, 4, 18, 5), mlp_ratio=2.0)
_base = dict(_width(128), depths=(3, 4, 18, 5), mlp_ratio=2.0, layer_scale=1e-5)
_large = dict(_width(192), depths=(3, 4, 18, 5), mlp_ratio=2.0)
# the largest that fit maps of 56, 28 and 14 pixels with κ = 7, and of 96, 48 and 24 with κ = 11
_dilated = dict(dilations=((1, 8), (1, 4), (1, 2), (1,)))
_dilated384 = dict(dilations=((1, 13), (1, 6), (1, 3), (1,)))  # of 96, 48 and 24 pixels with κ = 7

VARIANTS = {
    "nat_mini": Variant(_mini, 19_984_174, 2.7, 81.8, drop_path=0.2),
    "nat_tiny": Variant(_tiny, 27_901_582, 4.3, 83.2, drop_path=0.2),
    "nat_small": Variant(_small | dict(layer_scale=1e-5), 50_743_297, 7.8, 83.7, drop_path=0.3),
    "nat_base": Variant(_base, 89_769_652, 13.7, 84.3, drop_path=0.5),
    "dinat_mini": Variant(_mini | _dilated, 19_984_174, 2.7, 81.8, drop_path=0.2),
    "dinat_tiny": Variant(_tiny | _dilated, 27_901_582, 4.3, 82.7, drop_path=0.2),
    "dinat_small": Variant(_small | _dilated, 50_719_681, 7.8, 83.8, drop_path=0.3),  # without layer scale
    "dinat_base": Variant(_base | _dilated, 89_769_652, 13.7, 84.4, drop_path=0.5),
    "dinat_large": Variant(_large | _dilated, 200_943_514, 30.6, 86.6, drop_path=0.35),
    "dinat_large_384": Variant(_large | _dilated384, 200_943_514, 89.7, 87.4, size=384, drop_path=0.35, crop=1.0),
    "dinat_large_384_11x11": Variant(
        _large | _dilated | dict(kernel_size=11), 201_144_250, 92.4, 87.5, size=384, drop_path=0.35, crop=1.0
    ),
}
SWIN_VARIANTS = {
    "dinat_s_tiny": Variant(_width(96), 28_288_354, 4.5, 81.8, drop_path=0.2),
    "dinat_s_small": Variant(_width(96) | dict(depths=(2, 2, 18, 2)), 49_606_258, 8.7, 83.5, drop_path=0.3),
    "dinat_s_base": Variant(_width(128) | dict(depths=(2, 2, 18, 2)), 87_768_224, 15.4, 83.8, drop_path=0.5),
    "dinat_s_large": Variant(_width(192) | dict(depths=(2, 2, 18, 2)), 196_532_476, 34.5, 86.5, drop_path=0.35),
}
ISOTROPIC_VARIANTS = {
    "nat_iso_small": Variant(dict(), 21_999_736, 4.3, 80.0, drop_path=0.1),
    "dinat_iso_base": Variant(dict(dim=768, heads=24, dilations=(1, 2)), 86_465_800, 16.9, 82.1, drop_path=0.4),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^patch_embed\.proj\.(\d)\.", r"stem.\1."),
    (r"^patch_embed\.norm\.", r"stem.2."),
    (r"^levels\.(\d)\.blocks\.", r"stages.\1.blocks."),
    (r"^levels\.(\d)\.downsample\.reduction\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.0."),
    (r"^levels\.(\d)\.downsample\.norm\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.1."),
    (r"\.attn\.", r".mixer."),
    (r"\.gamma(\d)$", r".scale\1.gamma"),
    (r"^norm(\d)\.", r"norms.\1."),
    (r"^norm\.", r"head.before."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]
SWIN_RULES: Rules = [
    (r"^patch_embed\.proj\.", r"stem.0."),
    (r"^patch_embed\.norm\.", r"stem.1."),
    (r"^layers\.(\d)\.blocks\.", r"stages.\1.blocks."),
    (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    *RULES,
]
ISOTROPIC_RULES: Rules = [
    (r"^patch_embed\.proj\.", r"stem.0."),
    (r"^patch_embed\.norm\.", r"stem.1."),
    (r"^layers\.", r"blocks."),
    (r"\.attn\.", r".mixer."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(NAT, VARIANTS, RULES)
register(DiNATs, SWIN_VARIANTS, SWIN_RULES)
register(NATIsotropic, ISOTROPIC_VARIANTS, ISOTROPIC_RULES)
