"""Local cross-attention from a coarse grid to a fine grid of several levels, and a neck that is made of it.

A token V (D channels) of a grid h x w reads the features F_1..F_L of its region of a grid H x W:

    F = LayerNorm([F_1, ..., F_L]);   q = W_q LayerNorm(V) + b_q;   k = W_k F + b_k;   v = W_v F + b_v
    V' = V + W_o local_cross_attention(q, k, v) + b_o

"Vision Remember: Alleviating Visual Forgetting in Efficient MLLM with Vision Feature Resample", arXiv 2506.03928,
without official code. The abstract has the queries, the local regions and the levels beside each other along the
channels. Norms, biases, the rule of the regions, the zero at the start, and the neck are ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.necks import FPN
from torch import Tensor, nn

from ...kernels import local_cross_attention
from ...registry import MODELS

MODES = ("concat", "sum")


class LocalResample(nn.Module):
    """A residual local cross-attention: `resample(tokens, *read(features))`. W_o and b_o are zero at the start, so that
    it changes nothing in a trained network.

    Args:
        dim: channels D of the tokens.
        vision_dims: channels C_1..C_L of the levels.
        heads: number of heads, which divides `inner`.
        inner: channels of q, k and v; D by default.
        halo: number of cells by which a region is larger on each side.
        levels_mode: "concat", or "sum": the same numbers up to rounding, of the same weights, without the levels beside
            each other in memory: W_k F is the sum of a product for each level.

    Raises:
        ValueError: no level, sizes below 1, heads that do not divide `inner`, another mode.
    """

    def __init__(
        self,
        dim: int,
        vision_dims: Sequence[int],
        heads: int,
        inner: int | None = None,
        halo: int = 0,
        levels_mode: str = "concat",
    ):
        super().__init__()
        inner = dim if inner is None else inner
        if min(dim, inner, heads, *vision_dims, len(vision_dims)) < 1 or halo < 0:
            raise ValueError(
                f"dim={dim}, vision_dims={tuple(vision_dims)}, inner={inner} and heads={heads} must be at least 1, "
                f"with one level at least, and halo={halo} at least 0"
            )
        if inner % heads:
            raise ValueError(f"heads={heads} must divide inner={inner}")
        if levels_mode not in MODES:
            raise ValueError(f"levels_mode must be one of {MODES}, got {levels_mode!r}")
        self.vision_dims, self.heads, self.halo, self.levels_mode = tuple(vision_dims), heads, halo, levels_mode
        self.norm_q, self.norm_kv = nn.LayerNorm(dim), nn.LayerNorm(sum(vision_dims))
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj, self.v_proj = (nn.Linear(sum(vision_dims), inner) for _ in range(2))
        self.out_proj = nn.Linear(inner, dim)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def read(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values, which depend on the image alone.

        Args:
            features: L maps (B, H, W, C_l) on one grid.

        Returns:
            k and v, (B, H, W, heads, inner / heads) each.

        Raises:
            ValueError: another number of levels or channels; maps of several grids.
        """
        shapes = [tuple(x.shape) for x in features]
        if tuple(shape[-1] for shape in shapes) != self.vision_dims or any(len(shape) != 4 for shape in shapes):
            raise ValueError(f"features must be maps (B, H, W, C) with C = {self.vision_dims}, got {shapes}")
        if len({shape[:3] for shape in shapes}) > 1:
            raise ValueError(f"features must be on one grid, got {shapes}")
        if self.levels_mode == "concat":
            fine = self.norm_kv(torch.cat(list(features), dim=-1))
            k, v = self.k_proj(fine), self.v_proj(fine)
        else:
            k, v = self._sums(features)
        return k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1))

    def _sums(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Level by level: the norm's mean and variance are over all of them."""
        count, norm = sum(self.vision_dims), self.norm_kv
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in features]
        mean = torch.stack([x.sum(-1, keepdim=True) for x in wide]).sum(0) / count
        variance = torch.stack([(x - mean).square().sum(-1, keepdim=True) for x in wide]).sum(0) / count
        factor = (variance + norm.eps).rsqrt()
        parts = zip(
            wide,
            *(x.split(self.vision_dims, dim=-1) for x in (norm.weight, norm.bias)),
            *(x.weight.split(self.vision_dims, dim=1) for x in (self.k_proj, self.v_proj)),
        )
        k: Tensor = self.k_proj.bias
        v: Tensor = self.v_proj.bias
        for x, weight, bias, to_k, to_v in parts:
            x = ((x - mean) * factor * weight + bias).to(features[0].dtype)
            k, v = k + F.linear(x, to_k), v + F.linear(x, to_v)
        return k, v

    def resample(self, tokens: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """V' of tokens V (B, h, w, D) and of what `read` gave."""
        q = self.q_proj(self.norm_q(tokens)).unflatten(-1, (self.heads, -1))
        found = local_cross_attention(q, k.to(q.dtype), v.to(q.dtype), self.halo)
        return tokens + self.out_proj(found.flatten(-2)).to(tokens.dtype)


@MODELS.register_module()
class VisionRememberNeck(FPN):
    """mmdet's FPN, before which each map but the finest reads the finer maps again, each pixel in its own region.

    The maps that a map reads are brought to the grid of the finest of them (nearest pixels), so that they are levels on
    one grid. All read the backbone's maps, not each other's results. It begins as mmdet's FPN. This use is ours;
    nothing was published for it.

    Args:
        in_channels: channels of the backbone's maps, the finest first.
        out_channels: channels of all maps.
        num_outs: number of maps.
        levels: most finer maps that a map reads; the next finer ones.
        head_dim: channels of a head; it divides what the maps have.
        halo, levels_mode: as of `LocalResample`.
        **options: what else mmdet's FPN takes.

    Raises:
        ValueError: fewer than two maps, no level, a head_dim that does not divide the channels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        levels: int = 2,
        head_dim: int = 32,
        halo: int = 0,
        levels_mode: str = "concat",
        **options: Any,
    ):
        if len(in_channels) < 2 or levels < 1:
            raise ValueError(
                f"in_channels={list(in_channels)} must be of two maps at least, and levels={levels} 1 at least"
            )
        if head_dim < 1 or any(channels % head_dim for channels in in_channels[1:]):
            raise ValueError(
                f"head_dim={head_dim} must divide the channels {list(in_channels[1:])} of the coarser maps"
            )
        super().__init__(list(in_channels), out_channels, num_outs, **options)
        self.levels = levels
        self.remember = nn.ModuleList(
            LocalResample(dim, in_channels[max(0, i - levels) : i], dim // head_dim, None, halo, levels_mode)
            for i, dim in enumerate(in_channels)
            if i
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the backbone -> `num_outs` maps (B, out_channels, h, w), the finest first.

        Raises:
            ValueError: another number of maps than `in_channels` has, or a map of other channels.
        """
        found = [x.shape[1] for x in inputs]
        if found != self.in_channels:
            raise ValueError(f"VisionRememberNeck: the maps have {found} channels, and in_channels={self.in_channels}")
        maps = [inputs[0]]
        module: Any
        for i, module in enumerate(self.remember, 1):
            finer = inputs[max(0, i - self.levels) : i]
            size = finer[0].shape[-2:]
            levels = [x if x.shape[-2:] == size else F.interpolate(x, size=size) for x in finer]
            k, v = module.read([x.permute(0, 2, 3, 1) for x in levels])
            maps.append(module.resample(inputs[i].permute(0, 2, 3, 1), k, v).permute(0, 3, 1, 2))
        return super().forward(tuple(maps))
