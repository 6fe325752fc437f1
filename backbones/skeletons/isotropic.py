"""The skeleton of plain vision transformers: patches, one resolution, class and register tokens beside the map."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MIXERS, MODELS
from ..layers import DropPath, Head, LayerNorm2d, Mlp
from .backbone import Backbone, choose
from .options import drop_path_rates, mixers_per_stage, per_stage


class TokenBlock(nn.Module):
    """The pre-norm block on a map (B, C, H, W) and tokens (B, T, C) beside it: a mixer that `takes_tokens` mixes both,
    any other the map alone; the MLP serves both."""

    def __init__(self, dim: int, mixer: nn.Module, mlp: Mlp, drop_path: float = 0.0, eps: float = 1e-6):
        super().__init__()
        self.norm1, self.mixer = nn.LayerNorm(dim, eps=eps), mixer
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=eps), mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        if tokens is None or not getattr(self.mixer, "takes_tokens", False):
            x = x + self.drop_path(self.mixer(self._map(self.norm1, x)))
        else:
            mixed, mixed_tokens = self.mixer(self._map(self.norm1, x), self.norm1(tokens))
            x, tokens = x + self.drop_path(mixed), tokens + self.drop_path(mixed_tokens)
        x = x + self.drop_path(self.mlp(self._map(self.norm2, x)))
        if tokens is None:
            return x
        rows = self.norm2(tokens).transpose(1, 2).unsqueeze(-1)  # a map of T x 1 pixels
        return x, tokens + self.drop_path(self.mlp(rows).squeeze(-1).transpose(1, 2))

    @staticmethod
    def _map(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Rescale(nn.Module):
    """A map at 4, 2, 1 or 1/2 of its size, by transposed convolutions or a maximum: levels for dense prediction out of
    one resolution. Source: the simple feature pyramid of ViTDet, arXiv 2203.16527."""

    def __init__(self, dim: int, factor: float):
        super().__init__()
        steps: dict[float, list[nn.Module]] = {
            4: [nn.ConvTranspose2d(dim, dim, 2, 2), LayerNorm2d(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)],
            2: [nn.ConvTranspose2d(dim, dim, 2, 2)],
            1: [],
            0.5: [nn.MaxPool2d(2, 2, ceil_mode=True)],
        }
        if factor not in steps:
            raise ValueError(f"scales may hold 4, 2, 1 and 0.5, got {factor}")
        self.steps = nn.Sequential(*steps[factor])

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)


def resize_position(position: Tensor, size: Sequence[int]) -> Tensor:
    """A learned position, a map (1, C, h, w), bicubically resized to (1, C, *size)."""
    if tuple(position.shape[-2:]) == tuple(size):
        return position
    wide = torch.promote_types(position.dtype, torch.float32)
    return F.interpolate(position.to(wide), tuple(size), mode="bicubic", antialias=True).to(position.dtype)


def position_of_file(name: str, position: Tensor, shape: Sequence[int]) -> Tensor:
    """The position of a checkpoint as a map of `shape` (1, C, h, w): the authors' files hold (1, N, C), row by row, of
    a square grid, ours a map. A class token's row must have been taken off."""
    if position.ndim == 3:
        count = position.shape[1]
        side = math.isqrt(count)
        height, width = shape[-2:] if shape[-2] * shape[-1] == count else (side, side)
        if height * width != count:
            return position  # of no grid: the loader reports the shapes
        position = position.transpose(1, 2).unflatten(2, (height, width))
    return resize_position(position, shape[-2:]) if position.shape[:2] == tuple(shape[:2]) else position


@MODELS.register_module()
class Isotropic(Backbone):
    """A network of one resolution and width. Its levels are its blocks: `out_indices` counts them.

    Args:
        dim: channels C.
        depth: number of blocks.
        mixers: one for each block, or one for all: a name of MIXERS, or dict(type=name, **options).
        patch_size: side of the square patches.
        class_token: block before which the class token joins; None for none, and the head reads the mean of all pixels.
        img_size: side of the image for which `position` is built; other images get it resized.
        position: whether the patches get a learned absolute position.
        registers: number of further learned tokens, which join with the class token or at the first block.
        mlp_ratio, drop_path_rate: as of `Pyramid`; a block stands for a stage.
        scales: in the dense form, for each of `out_indices` the size of the map that is given out, in units of the
            patches': 4, 2, 1 or 0.5; all 1 by default.
        **common: of `Backbone`. In the dense form `out_indices` defaults to four blocks, evenly spaced, up to the last.
    """

    checkpoint_resize = {r"^pos_embed$": position_of_file}

    def __init__(
        self,
        dim: int = 192,
        depth: int = 12,
        mixers: str | Mapping | Sequence[str | Mapping] = "Attention",
        class_token: int | None = 0,
        *,
        patch_size: int = 16,
        img_size: int = 224,
        position: bool = True,
        registers: int = 0,
        mlp_ratio: float | Sequence[float] = 4.0,
        drop_path_rate: float = 0.0,
        scales: Sequence[float] | None = None,
        out_indices: Sequence[int] | None = None,
        **common,
    ):
        if out_indices is None and common.get("num_classes") is None:
            out_indices = sorted({max(0, depth * k // 4 - 1) for k in (1, 2, 3, 4)})
        super().__init__([dim] * depth, [patch_size] * depth, out_indices=out_indices, **common)
        self.dim, self.depth, self.patch_size = dim, depth, patch_size
        self.mixers = mixers_per_stage(mixers, depth)
        self.mlp_ratio = per_stage("mlp_ratio", mlp_ratio, depth)
        self.joins = class_token if class_token is not None else 0
        if not 0 <= self.joins < depth:
            raise ValueError(f"class_token={class_token} must be a block of 0 to {depth - 1}, or None")
        self.patch_embed = self.make_stem(self.in_channels, dim)
        side = -(-img_size // patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, side, side)) if position else None
        blocks = depth if self.num_classes is not None else self.out_indices[-1] + 1
        reached = self.joins < blocks  # in the dense form, the tokens may join behind the last output
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token is not None and reached else None
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim)) if registers and reached else None
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(self.make_block(i, dim, rate) for i, rate in enumerate(rates))
        mixing = [getattr(block.mixer, "takes_tokens", False) for block in self.blocks[self.joins :]]
        if self.num_classes is not None and self.cls_token is not None and not any(mixing):
            raise ValueError(
                f"class_token={class_token}: no mixer from that block on takes tokens, so the head would never see the "
                "image; with class_token=None it reads the mean of the pixels"
            )
        for learned in (self.pos_embed, self.cls_token, self.register_tokens):
            if learned is not None:
                nn.init.trunc_normal_(learned, std=0.02)
        self.norm = nn.LayerNorm(dim, eps=1e-6)  # of the last map and of the tokens
        if self.num_classes is not None:
            self.head = Head(dim, self.num_classes)
        else:
            del self.blocks[blocks:]  # that nobody would read
            self._make_outputs(scales)
        self.apply(self.initialise)
        self.train()

    def _make_outputs(self, scales: Sequence[float] | None) -> None:
        scales = [1] * len(self.out_indices) if scales is None else list(scales)
        if len(scales) != len(self.out_indices):
            raise ValueError(f"scales={scales} must have one entry for each of out_indices={self.out_indices}")
        if uneven := [factor for factor in scales if self.patch_size % max(1, factor)]:
            raise ValueError(f"scales={scales}: {uneven[0]} does not divide patch_size={self.patch_size}")
        self.rescale = nn.ModuleList(Rescale(self.dim, factor) for factor in scales)
        self.out_strides = tuple(int(self.patch_size / factor) for factor in scales)

    # --- the pieces --------------------------------------------------------------------------------------------------

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        """Image -> map of patches; the image was padded to whole patches."""
        return nn.Conv2d(in_channels, dim, self.patch_size, self.patch_size)

    def make_block(self, index: int, dim: int, drop_path: float) -> nn.Module:
        mixer = MIXERS.build({**self.mixers[index], "dim": dim})
        return TokenBlock(dim, mixer, Mlp(dim, self.mlp_ratio[index]), drop_path)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _run(self, image: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The map and the tokens after every block."""
        bottom, right = (-size % self.patch_size for size in image.shape[-2:])
        x = self.patch_embed(F.pad(image, (0, right, 0, bottom)) if bottom or right else image)
        if self.pos_embed is not None:
            x = x + resize_position(self.pos_embed, x.shape[-2:])
        tokens = None
        for i, block in enumerate(self.blocks):
            if i == self.joins:
                new = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.register_tokens) if t is not None]
                tokens = torch.cat(new, dim=1) if new else None
            if tokens is None:
                x = self.run(block, x)
            else:
                x, tokens = self.run(block, x, tokens)
            yield x, tokens

    def levels(self, image: Tensor) -> Iterator[Tensor]:
        for x, _ in self._run(image):
            yield x

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.num_classes is not None:
            return self.forward_head(self.forward_features(image))
        height, width = image.shape[-2:]
        maps = self._maps(image, self.out_indices, norm=True)
        return tuple(  # without what the padding to whole patches added to the enlarged ones
            rescale(x)[..., : -(-height // stride), : -(-width // stride)]
            for rescale, x, stride in zip(self.rescale, maps, self.out_strides)
        )

    def _norm(self, level: int, x: Tensor) -> Tensor:
        return TokenBlock._map(self.norm, x)

    def forward_features(self, image: Tensor) -> Tensor:
        """Tokens and pixels after the last norm, (B, T + N, C), the class token first."""
        x, tokens = None, None
        for x, tokens in self._run(self.check(image)):  # noqa: B007
            pass
        assert x is not None
        return self._rows(x, tokens)

    def _rows(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return self.norm(rows if tokens is None else torch.cat([tokens, rows], dim=1))

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """As of `Backbone`. The maps are those of the pixels, without the tokens."""
        count = self.num_levels
        chosen = choose(indices, count)
        maps = []
        x, tokens = None, None
        for i, (x, tokens) in enumerate(self._run(self.check(image))):  # noqa: B007
            maps += [self._norm(i, x) if norm else x] * chosen.count(i)
            if intermediates_only and i == chosen[-1]:
                break
        assert x is not None
        return maps if intermediates_only else (self._rows(x, tokens), maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of what `forward_features` gave: of its class token, or of the mean of its pixels."""
        count = self.register_tokens.shape[1] if self.register_tokens is not None else 0
        read = x[:, :1] if self.cls_token is not None else x[:, count:]
        return super().forward_head(read.transpose(1, 2).unsqueeze(-1), pre_logits)

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        left_out = [rf"^blocks\.{i}\." for i in range(len(self.blocks), self.depth)]
        tokens = [rf"^{name}$" for name in ("cls_token", "register_tokens") if getattr(self, name) is None]
        return (*super().checkpoint_optional, *left_out, *tokens)

    @property
    def num_levels(self) -> int:
        return len(self.blocks)

    def frozen_parts(self) -> list[nn.Module]:
        return [self.patch_embed, *self.blocks[: self.frozen_stages]]

    def train(self, mode: bool = True) -> "Isotropic":
        super().train(mode)
        if self.frozen_stages >= 0:  # parts of the stem that are no modules
            joined = self.joins == 0 or self.joins < self.frozen_stages
            for learned in (self.pos_embed, *((self.cls_token, self.register_tokens) if joined else ())):
                if learned is not None:
                    learned.requires_grad_(False)
        return self

    def no_weight_decay(self) -> set[str]:
        own = {n for n in ("pos_embed", "cls_token", "register_tokens") if getattr(self, n) is not None}
        return super().no_weight_decay() | own

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^(patch_embed|pos_embed|cls_token|register_tokens)",
            blocks=[(r"^blocks\.(\d+)", None), (r"^(norm|rescale)", (99999,))],
        )
