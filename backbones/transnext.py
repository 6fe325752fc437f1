"""TransNeXt: every pixel sees its neighborhood finely and the whole map coarsely, in one softmax.

"TransNeXt: Robust Foveal Visual Perception for Vision Transformers", CVPR 2024, arXiv 2311.17132;
https://github.com/DaiShiResearch/TransNeXt (Apache-2.0), whose weights load.

Aggregated attention, for each of h heads, with unit vectors q̂, k̂ of queries and keys, the w x w neighbors n_m of a
pixel, and P tokens p of the pooled map, norm(pool(GELU(linear(x)))), which share the projection to keys and values:

    s = (q̂ + E) · softplus(t) · log L                 L = neighbors inside the image + P
    A = softmax([s · k̂(n_m) + b_m,  s · k̂_p + B_p])   over both together
    y = Σ_m (A_m + q̂ · T_m + c_m) v(n_m) + Σ_p A_p v_p

E, t, b, T, c are learned; B is a small MLP of the log-scaled distance from the pixel to the center of p. The cost is
N (w² + P) C, linear in N if P is fixed. The last stage attends to all pixels instead: A = softmax(s · k̂ + B), L = N.

Where paper and code differ, the code counts. Its class for classification fixes the image size and that for dense
prediction does not; this one does not.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import Block, ConvGlu, Head, LayerNorm2d, Linear, Pointwise, any_free, heads_of
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------


def _cells(side: int, sr_ratio: int, pool_size: int | None) -> int:
    """Cells of the pooled map along a side of the map."""
    return max(1, side // sr_ratio) if pool_size is None else min(pool_size, side)


def _log_differences(side: int, cells: int, pretrain_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The position of pixels against the centers of the cells of adaptive average pooling, along one side of a map.

    Returns:
        The log-scaled differences that occur, ascending (U,), in the dtype of `like`; and for each pixel and cell
        (side, cells) which of them is its own. They recur, so U is two to four times `side`, and the MLP is asked once
        for each.
    """

    def twice_center(cell):  # which is an integer
        first, behind = cell * side // cells, ((cell + 1) * side + cells - 1) // cells
        return first + behind - 1

    step = 2 if side % cells == 0 else 1  # of cells of one size, all centers have the same parity
    lowest, highest = -twice_center(cells - 1), 2 * (side - 1) - twice_center(0)
    # on the device: a list of the centers would be copied there while the device waits
    pixels, all_cells = torch.arange(side, device=like.device), torch.arange(cells, device=like.device)
    index = (2 * pixels[:, None] - twice_center(all_cells) - lowest) // step
    dtype = torch.promote_types(like.dtype, torch.float32)
    scaled = torch.arange(lowest, highest + 1, step, device=like.device).to(dtype) * (4 / (pretrain_size - 1))
    return (scaled.sign() * (scaled.abs() + 1).log2() / 3).to(like.dtype), index


class PositionBias(nn.Module):
    """The bias B by relative position, from all pixels to all cells of the pooled map: an MLP of two coordinates.

    A difference δ of rows or columns enters as sign(z) log₂(|z| + 1) / 3, z = 8 δ / (pretrain_size - 1).

    Args:
        heads: number of attention heads h.
        sr_ratio, pool_size: as of `AggregatedAttention`; sr_ratio=1 for cells that are pixels.
        pretrain_size: side of the map in pre-training, at least 2.
        grid_size: side of the map that B is computed for, to be resized (bilinear, over the cells and then over the
            pixels) to others; None to compute it for the map itself.

    `forward(height, width) -> (h, height · width, P)`.
    """

    no_weight_decay = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")

    def __init__(self, heads: int, sr_ratio: int, pool_size: int | None, pretrain_size: int, grid_size: int | None):
        super().__init__()
        if pretrain_size < 2:
            raise ValueError(f"pretrain_size={pretrain_size} must be at least 2: distances are divided by it less one")
        self.sr_ratio, self.pool_size = sr_ratio, pool_size
        self.pretrain_size, self.grid_size = pretrain_size, grid_size
        self.fc1 = nn.Linear(2, 512)
        self.fc2 = nn.Linear(512, heads)

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the pooled map."""
        return _cells(height, self.sr_ratio, self.pool_size), _cells(width, self.sr_ratio, self.pool_size)

    def forward(self, height: int, width: int) -> Tensor:
        size = (height, width)
        if self.grid_size is None or (not any_free(size) and size == (self.grid_size, self.grid_size)):
            return self._exact(height, width)
        grid = (self.grid_size, self.grid_size)
        bias = self._exact(*grid).unflatten(2, self.cells(*grid))
        bias = F.interpolate(bias, self.cells(*size), mode="bilinear").flatten(2).transpose(1, 2)  # (h, P, pixels)
        return F.interpolate(bias.unflatten(2, grid), size, mode="bilinear").flatten(2).transpose(1, 2)

    def _exact(self, height: int, width: int) -> Tensor:
        rows, columns = self.cells(height, width)
        y, index_y = _log_differences(height, rows, self.pretrain_size, self.fc1.weight)
        x, index_x = _log_differences(width, columns, self.pretrain_size, self.fc1.weight)
        hidden = F.relu(self.fc1(torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)), inplace=True)
        table = self.fc2(hidden)
        index = index_y[:, None, :, None] * x.shape[0] + index_x[:, None, :]  # (height, width, rows, columns)
        return table.flatten(0, 1).t().index_select(1, index.flatten()).unflatten(1, (height * width, rows * columns))


class CosineAttention(nn.Module):
    """What both attentions share: scaled unit queries, and the bias by position."""

    no_weight_decay: tuple[str, ...] = ("temperature", "query_embedding")

    def __init__(self, dim: int, heads: int | None, **position):
        super().__init__()
        self.heads = heads_of(type(self).__name__, dim, heads, head_dim=24)
        self.temperature = nn.Parameter(torch.full((self.heads, 1, 1), 1 / 0.24).expm1().log())  # softplus is 1 / 0.24
        self.query_embedding = nn.Parameter(torch.empty(self.heads, 1, dim // self.heads))
        nn.init.trunc_normal_(self.query_embedding, std=0.02)
        self.cpb = PositionBias(self.heads, **position)
        self.proj = Linear(dim, dim)

    def _scaled(self, q: Tensor, log_length: Tensor | float) -> Tensor:
        """s of unit queries q (B, h, N, d); log_length is a number or (N, 1)."""
        return (q + self.query_embedding) * (F.softplus(self.temperature) * log_length)

    def _split(self, linear: nn.Linear, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows (B, N, C) through a linear layer to tensors (B, h, N, d), as many as it has widths of C."""
        parts = linear(rows).unflatten(-1, (-1, self.heads, rows.shape[-1] // self.heads))
        return parts.permute(2, 0, 3, 1, 4).unbind(0)

    def _join(self, y: Tensor, height: int, width: int) -> Tensor:
        """(B, h, N, d) -> (B, C, H, W), through the last layer."""
        return self.proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (height, width))


@MIXERS.register_module()
class AggregatedAttention(CosineAttention):
    """Attention to the w x w neighbors and to a pooled map in one softmax, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 24 by default.
        sr_ratio: pixels along a side of a cell of the pooled map, which has at least one cell.
        window: side w of the neighborhood, odd.
        pool_size: number of cells along each side, in place of sr_ratio (fewer where the map is smaller), for a cost
            that is linear in the pixels.
        pretrain_size, grid_size: as of `PositionBias`.
        qkv_bias: whether the projections to queries, keys and values have a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    no_weight_decay = (*CosineAttention.no_weight_decay, "relative_pos_bias_local")

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        sr_ratio: int = 8,
        window: int = 3,
        pool_size: int | None = None,
        pretrain_size: int = 56,
        grid_size: int | None = None,
        qkv_bias: bool = True,
    ):
        for name, value in (("sr_ratio", sr_ratio), ("pool_size", pool_size)):
            if value is not None and value < 1:
                raise ValueError(f"AggregatedAttention: {name}={value} must be at least 1")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"AggregatedAttention: window={window} must be odd, its middle is the pixel itself")
        position = dict(sr_ratio=sr_ratio, pool_size=pool_size, pretrain_size=pretrain_size, grid_size=grid_size)
        super().__init__(dim, heads, **position)
        self.window = window
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.sr = Pointwise(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.relative_pos_bias_local = nn.Parameter(torch.empty(self.heads, window**2))
        self.learnable_tokens = nn.Parameter(torch.empty(self.heads, dim // self.heads, window**2))
        self.learnable_bias = nn.Parameter(torch.zeros(self.heads, 1, window**2))
        nn.init.trunc_normal_(self.relative_pos_bias_local, std=4e-4)
        nn.init.trunc_normal_(self.learnable_tokens, std=0.02)

    def _shifts(self, x: Tensor, height: int, width: int) -> list[Tensor]:
        """The neighbors m of every pixel: w² views (..., H, W, d) of x (..., N, d) with zeros around it."""
        border = self.window // 2
        x = F.pad(x.unflatten(-2, (height, width)), (0, 0, border, border, border, border))
        offsets = range(self.window)
        return [x[..., i : i + height, j : j + width, :] for i in offsets for j in offsets]

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A (B, h, N, w² + P), and unit queries (B, h, N, d), values (B, h, N, d), pooled values (B, h, P, d)."""
        height, width = x.shape[-2:]
        rows = x.flatten(2).transpose(1, 2)
        pooled = F.adaptive_avg_pool2d(F.gelu(self.sr(x)), self.cpb.cells(height, width))
        (q,), (k, v) = self._split(self.q, rows), self._split(self.kv, rows)
        pooled_k, pooled_v = self._split(self.kv, self.norm(pooled.flatten(2).transpose(1, 2)))
        q, k, pooled_k = (F.normalize(unit, dim=-1).contiguous() for unit in (q, k, pooled_k))

        ones = x.new_ones(height * width, 1, dtype=torch.promote_types(x.dtype, torch.float32))
        inside = torch.cat(self._shifts(ones, height, width), dim=-1).flatten(0, 1)  # (N, w²)
        scaled = self._scaled(q, (inside.sum(1, keepdim=True) + pooled_k.shape[2]).log().to(q.dtype))
        on_map = scaled.unflatten(2, (height, width))
        # a loop, so that neither the products nor the keys of all neighbors stand in memory together
        local = torch.stack([(on_map * key).sum(-1) for key in self._shifts(k, height, width)], dim=-1).flatten(2, 3)
        local = (local + self.relative_pos_bias_local[:, None]).masked_fill(inside == 0, -torch.inf)
        coarse = scaled @ pooled_k.transpose(-1, -2) + self.cpb(height, width)
        return torch.cat([local, coarse], dim=-1).softmax(-1), q, v, pooled_v

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        weights, q, v, pooled_v = self._weights(x)
        local, coarse = weights.split([self.window**2, pooled_v.shape[2]], dim=-1)
        local = (local + q @ self.learnable_tokens + self.learnable_bias).unflatten(2, (height, width))
        y = (coarse @ pooled_v).unflatten(2, (height, width))
        for weight, value in zip(local.unbind(-1), self._shifts(v, height, width)):
            y = y + weight[..., None] * value
        return self._join(y.flatten(2, 3), height, width)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, h, H, W), sums of 1. The weight of a
        pooled token is spread evenly over its cell; T and c are left out."""
        (row, column), (height, width) = place, x.shape[-2:]
        weights = self._weights(x)[0][:, :, row * width + column]
        cells, border = self.cpb.cells(height, width), self.window // 2
        local, coarse = weights.split([self.window**2, cells[0] * cells[1]], dim=-1)
        to_rows, to_columns = (
            F.adaptive_avg_pool1d(torch.eye(side, dtype=x.dtype, device=x.device), count)  # (side, count)
            for side, count in zip((height, width), cells)
        )
        maps = to_rows @ coarse.unflatten(-1, cells) @ to_columns.t()
        around = (column, width - 1 - column, row, height - 1 - row)  # the window's middle comes to the place
        local = F.pad(local.unflatten(-1, (self.window, self.window)), around)
        return maps + local[..., border : border + height, border : border + width]


@MIXERS.register_module()
class LengthScaledCosineAttention(CosineAttention):
    """Attention to all pixels by scaled cosines and relative position, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 24 by default.
        pretrain_size, grid_size: as of `PositionBias`.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        pretrain_size: int = 7,
        grid_size: int | None = None,
        qkv_bias: bool = True,
    ):
        super().__init__(dim, heads, sr_ratio=1, pool_size=None, pretrain_size=pretrain_size, grid_size=grid_size)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)

    def _logit_parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """s, k̂, v (B, h, N, d), and B (h, N, N)."""
        height, width = x.shape[-2:]
        q, k, v = self._split(self.qkv, x.flatten(2).transpose(1, 2))
        q, k = self._scaled(F.normalize(q, dim=-1), math.log(height * width)), F.normalize(k, dim=-1)
        return q, k, v, self.cpb(height, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, bias = self._logit_parts(x)
        return self._join(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0), *x.shape[-2:])

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, h, H, W), sums of 1."""
        q, k, _, bias = self._logit_parts(x)
        index = place[0] * x.shape[3] + place[1]
        logits = (k @ q[:, :, index, :, None]).squeeze(-1) + bias[:, index]
        return logits.softmax(-1).unflatten(-1, x.shape[-2:])


# --- network ---------------------------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """An overlapping convolution that rounds odd sizes up, then layer norm."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class TransNeXt(Pyramid):
    """TransNeXt, at any size of the image. The norm of a stage is on its path: maps are given as the next stage reads
    them, in the dense form too.

    Args:
        dims, depths, drop_path_rate, **common: as of `Pyramid`.
        mlp_ratio: as of `Pyramid`; `ConvGlu` has two thirds of that width.
        heads: number of attention heads, one or one for each stage; by default of 24 channels each.
        sr_ratios: `sr_ratio` of `AggregatedAttention`, one or one for each stage; 1 for attention to all pixels.
        window: side of the window of `AggregatedAttention`; one, or one for each stage (None where sr_ratios has 1).
        qkv_bias: whether the projections to queries, keys and values have a bias.
        pool_size: as of `AggregatedAttention`: the authors' "linear inference mode".
        img_size: side of the image that biases by position are computed for, to be resized for others; None to compute
            them for every size as it comes (the authors' is_extrapolation=True). At this very size both are the same.
            No file holds it: the authors' detectors have 800, their segmentors 512 (800 for several scales).
        pretrain_size: side of the image in pre-training, by which positions are scaled; the released weights have 224
            (those of AAAA: 256).
    """

    unused = ("layer_scale",)

    fixed_sizes = dict.fromkeys(
        (".pt2", ".onnx"),
        dict.fromkeys(("height", "width"), "its biases of positions are laid out for one size of the map"),
    )

    def __init__(
        self,
        dims=(48, 96, 192, 384),
        depths=(2, 2, 15, 2),
        heads=None,
        sr_ratios=(8, 4, 2, 1),
        mlp_ratio=(8, 8, 4, 4),
        window: int | Sequence[int | None] = 3,
        qkv_bias: bool = True,
        pool_size: int | None = None,
        img_size: int | None = 224,
        pretrain_size: int = 224,
        **common,
    ):
        strides = [self.stem_stride * 2**i for i in range(len(dims))]
        if pretrain_size < 2 * strides[-1]:
            raise ValueError(
                f"pretrain_size={pretrain_size} must be at least {2 * strides[-1]}: positions in the last stage are "
                f"divided by its side less one, pretrain_size // {strides[-1]} - 1"
            )
        if img_size is not None and img_size < strides[-1]:
            raise ValueError(
                f"img_size={img_size} must be at least {strides[-1]}, one pixel of the last stage, or None"
            )
        self.heads, self.sr_ratios, self.windows = (
            per_stage(name, value, len(dims))
            for name, value in (("heads", heads), ("sr_ratios", sr_ratios), ("window", window))
        )
        self.pool_size, self.qkv_bias = pool_size, qkv_bias
        self.img_size, self.pretrain_size = img_size, pretrain_size
        super().__init__(dims, depths, mlp_ratio=mlp_ratio, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return PatchEmbed(in_channels, dim, 7, 4)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return PatchEmbed(in_dim, dim, 3, 2)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        stride, sr_ratio = self.strides[stage], self.sr_ratios[stage]
        sizes = self.pretrain_size // stride, None if self.img_size is None else self.img_size // stride
        mixer: nn.Module
        if sr_ratio == 1:
            mixer = LengthScaledCosineAttention(dim, self.heads[stage], *sizes, self.qkv_bias)
        else:
            reach = sr_ratio, self.windows[stage], self.pool_size
            mixer = AggregatedAttention(dim, self.heads[stage], *reach, *sizes, self.qkv_bias)
        return Block(dim, mixer, ConvGlu(dim, self.mlp_ratio[stage]), drop_path)

    def make_stage_norm(self, stage: int, dim: int) -> nn.Module:
        return LayerNorm2d(dim)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes)

    def initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            nn.init.normal_(module.weight, std=(2 * module.groups / (height * width * module.out_channels)) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            super().initialize(module)


def _size(width: int, *depths: int) -> dict:
    return dict(dims=(width, 2 * width, 4 * width, 8 * width), depths=depths)


_small, _base = _size(72, 5, 5, 22, 5), _size(96, 5, 5, 23, 5)
_img384 = dict(img_size=384)
_aaaa = dict(sr_ratios=(16, 8, 4, 2), img_size=256, pretrain_size=256)

VARIANTS = {
    "transnext_micro": Variant(_size(48, 2, 2, 15, 2), 12_809_304, 2.7, 82.5, drop_path=0.15),
    "transnext_tiny": Variant(_size(72, 2, 2, 15, 2), 28_258_960, 5.7, 84.0, drop_path=0.25),
    "transnext_small": Variant(_small, 49_741_564, 10.3, 84.7, drop_path=0.45),
    "transnext_small_img384": Variant(_small | _img384, 49_741_564, top1=86.0, size=384, drop_path=0.45, crop=1.0),
    "transnext_base": Variant(_base, 89_721_496, 18.4, 84.8, drop_path=0.6),
    "transnext_base_img384": Variant(_base | _img384, 89_721_496, top1=86.2, size=384, drop_path=0.6, crop=1.0),
    "transnext_micro_aaaa": Variant(_size(48, 2, 2, 15, 2) | _aaaa, 13_114_008, 3.3, 82.6, size=256, drop_path=0.15),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^patch_embed1\.", r"stem."),
    (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
    (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"\.attn\.", r".mixer."),
    (r"(^|\.)cpb_fc(\d)\.", r"\1cpb.fc\2."),
    (r"(^|\.)dwconv\.dwconv\.", r"\1dwconv."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(TransNeXt, VARIANTS, RULES)
