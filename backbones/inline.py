"""InLine: linear attention that is injective and has a local residual, in DeiT, PVT, Swin and CSwin.

"Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024, arXiv 2412.06590;
https://github.com/LeapLabTHU/InLine (no licence file; parts carry Swin's MIT header), whose weights load.

For each head of width d, N tokens, means of φ(k) and v over the tokens, and a function φ (the identity in all published
networks):

    w_ij = 1/N + φ(q_i) · (φ(k_j) - mean φ(k)) / (N √d)             # sums of 1 over j; some may be negative
    y_i  = Σ_j w_ij v_j = mean v + φ(q_i) M
    M    = Σ_j (φ(k_j) - mean φ(k)) v_jᵀ / (N √d)                   # (d, d): how keys and values vary together
    out  = proj(y + r * v)

The common linear attention divides by the sum of its weights and so gives q and 2 q the same weights; here different
queries have different weights (`indistinguishable` shows it), and there is no division. r * v, the local residual,
convolves the values by a 3x3 kernel for each channel that two linear layers make of the mean of all tokens x: every
image has its own. Time and memory are linear in N.

The paper's equation leaves 1 / (N √d) out, which its authors place inside φ(q) (their issue 3). A class token is one
of the N tokens, but has no place in the map of the residual. Attention spans the whole map: the windows of 56 pixels
that the code of InLine-Swin names are the map of its first stage.
"""

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import (
    Block,
    Head,
    LayerNorm2d,
    Linear,
    Mlp,
    Patches,
    PositionTable,
    WindowAttention,
    depthwise,
    fill,
    heads_of,
)
from .skeletons.backbone import FIXED_BY_WINDOWS
from .skeletons.isotropic import Isotropic
from .skeletons.options import image_sides, per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


def scaled_exp(x: Tensor) -> Tensor:
    """exp(x / 5), which stays in the range of half types."""
    return (0.2 * x).exp()


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "exp": scaled_exp,
}


def inline_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Σ_j w_ij v_j for φ(q), φ(k) and v, all (B, heads, N, d); see above.

    Both factors of M are scaled by 1 / √(N √d), so that sums of many products stay in the range of half types.
    """
    count, width = k.shape[-2:]
    wide = torch.promote_types(k.dtype, torch.float32)
    scale = (torch.full((), width**-0.5, dtype=wide, device=k.device) / count).sqrt()
    varied = ((k - k.mean(-2, keepdim=True)) * scale).mT @ (v * scale)
    return v.mean(-2, keepdim=True) + q @ varied


def local_residual(v: Tensor, kernels: Tensor) -> Tensor:
    """Each channel of each map v (B, C, H, W) by its own 3x3 kernel (B, C, 9), with zeros beyond the map.

    It is one convolution of B · C groups, whose backward is faster than that of nine products. In traced graphs it is
    the nine products: the number of groups would fix the batch of an export. So it is for no image, of no groups.
    """
    if torch.compiler.is_compiling() or not len(v):
        return sum_of_taps(v, kernels)
    maps = v.reshape(1, -1, *v.shape[2:])
    return F.conv2d(maps, kernels.reshape(-1, 1, 3, 3), padding=1, groups=maps.shape[1]).view(v.shape)


def sum_of_taps(v: Tensor, kernels: Tensor) -> Tensor:
    """`local_residual` as a sum of nine shifted maps."""
    height, width = v.shape[-2:]
    taps = kernels[..., None, None].unbind(2)
    padded = F.pad(v, (1, 1, 1, 1))
    shifted = (padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3))
    total = next(shifted) * taps[0]
    for part, tap in zip(shifted, taps[1:]):
        total = torch.addcmul(total, part, tap)
    return total


@MIXERS.register_module()
class InLine(nn.Module):
    """Injective linear attention with a local residual, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default. They are the groups of the layers that make the
            kernels, too.
        kernel: name of the function φ: "identity", "relu", "leaky_relu" or "exp" (of x / 5).
        lepe: whether a depth-wise 3x3 convolution of the values, the same for all images, is added, as in CSwin.
        qkv_bias: whether the projections to queries, keys and values have a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with `tokens (B, T, C)`, which take part, a pair of both. `context`
    (B, C) makes the kernels of the residual instead of the mean of all tokens.
    """

    takes_tokens = True

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        kernel: str = "identity",
        lepe: bool = False,
        qkv_bias: bool = True,
    ):
        super().__init__()
        self.heads = heads_of("InLine", dim, heads)
        if kernel not in KERNELS:
            raise ValueError(f"InLine: kernel={kernel!r} must be one of {', '.join(KERNELS)}")
        self.kernel = kernel
        self.make_projections(dim, qkv_bias)
        self.residual = nn.Sequential(
            nn.Conv1d(dim, dim, 1, groups=self.heads), nn.GELU(), nn.Conv1d(dim, 9 * dim, 1, groups=self.heads)
        )
        self.lepe = nn.ModuleList([depthwise(dim, 3)] if lepe else [])
        self.proj = Linear(dim, dim)

    def make_projections(self, dim: int, bias: bool) -> None:
        self.qkv = Linear(dim, 3 * dim, bias=bias)

    def project(self, rows: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, (B, N, C) each."""
        return self.qkv(rows).chunk(3, dim=-1)

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, tokens: Tensor | None = None, context: Tensor | None = None):
        rows, size = x.flatten(2).transpose(1, 2), x.shape[-2:]
        if tokens is not None:
            rows = torch.cat([tokens, rows], dim=1)
        count = 0 if tokens is None else tokens.shape[1]
        q, k, v = self.project(rows)
        phi = KERNELS[self.kernel]
        y = inline_attention(self._heads(phi(q)), self._heads(phi(k)), self._heads(v)).transpose(1, 2).flatten(2)
        context = rows.mean(1) if context is None else context
        kernels = self.residual(context.unsqueeze(-1)).unflatten(1, (-1, 9)).squeeze(-1)  # channel by channel
        values = v[:, count:].transpose(1, 2).unflatten(2, size)
        local = local_residual(values, kernels)
        for conv in self.lepe:
            local = local + conv(values)
        local = local.flatten(2).transpose(1, 2)
        y = self.proj(y + local if tokens is None else torch.cat([y[:, :count], y[:, count:] + local], dim=1))
        x = y[:, count:].transpose(1, 2).unflatten(2, size)
        return x if tokens is None else (x, y[:, :count])

    def attention_maps(self, x: Tensor, place: tuple[int, int], tokens: Tensor | None = None) -> Tensor:
        """The weights that the pixel (row, column) `place` gives to the values, without the residual, by head: (B,
        heads, H, W). Some are negative; the sum is 1 less what goes to the tokens."""
        rows, (height, width) = x.flatten(2).transpose(1, 2), x.shape[-2:]
        count = 0 if tokens is None else tokens.shape[1]
        q, k, _ = self.project(rows if tokens is None else torch.cat([tokens, rows], dim=1))
        q, k = (self._heads(KERNELS[self.kernel](y)) for y in (q, k))
        query = q[:, :, count + place[0] * width + place[1], :, None] * q.shape[-1] ** -0.5
        weights = (1 + (k - k.mean(-2, keepdim=True)) @ query).squeeze(-1) / k.shape[-2]
        return weights[..., count:].unflatten(-1, (height, width))


class InLineOfPVT(InLine):
    """`InLine` whose queries have a layer of their own, as the weights of InLine-PVT have it."""

    def make_projections(self, dim: int, bias: bool) -> None:
        self.q = Linear(dim, dim, bias=bias)
        self.kv = Linear(dim, 2 * dim, bias=bias)

    def project(self, rows: Tensor) -> Sequence[Tensor]:
        return self.q(rows), *self.kv(rows).chunk(2, dim=-1)


# --- injectivity -----------------------------------------------------------------------------------------------------


def _linear_weights(q: Tensor, k: Tensor) -> Tensor:
    weights = F.relu(q) @ F.relu(k).mT
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)


def _inline_weights(q: Tensor, k: Tensor) -> Tensor:
    return (1 + q @ (k - k.mean(0)).mT * q.shape[-1] ** -0.5) / len(k)


WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": lambda q, k: (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1),
    "linear": _linear_weights,
    "inline": _inline_weights,
}


def indistinguishable(attention: str, queries: Tensor, keys: Tensor, tolerance: float = 1e-6) -> float:
    """The share of pairs of queries that an attention cannot tell apart: it gives them the same weights.

        directions = torch.randn(20, 1, 8, dtype=torch.float64)
        queries = (directions * torch.tensor([1.0, 2.0, 4.0]).view(3, 1)).flatten(0, 1)  # three lengths of each
        keys = torch.randn(50, 8, dtype=torch.float64)
        {name: indistinguishable(name, queries, keys) for name in ("softmax", "linear", "inline")}

    The paper's propositions in numbers (section 4.1): softmax attention and InLine are injective, so the share is 0 if
    the queries differ and the centered keys span their space. Linear attention is not: with ReLU, queries of one
    direction have the same weights, and so have those without a positive entry.

    Args:
        attention: "softmax", "linear" (ReLU, and each row divided by its sum) or "inline".
        queries: (M, d), at least two, floating point, no two the same.
        keys: (N, d), in the same dtype.
        tolerance: largest difference of a weight at which two rows count as the same, in units of 1 / N.

    Returns:
        The share, from 0 to 1, of the M (M - 1) / 2 pairs.

    Raises:
        ValueError: another attention, or shapes that do not fit.
        TypeError: queries that are not of floating point, or keys of another dtype.
    """
    if attention not in WEIGHTS:
        raise ValueError(f"attention={attention!r} must be one of {', '.join(WEIGHTS)}")
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1] or len(queries) < 2 or not len(keys):
        raise ValueError(
            "queries must have shape (M, d) with M at least 2, and keys (N, d) with N at least 1, got "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    if not queries.is_floating_point():
        raise TypeError(f"queries must be of floating point, got {queries.dtype}")
    if keys.dtype != queries.dtype:
        raise TypeError(f"keys must be of the dtype of queries, {queries.dtype}, got {keys.dtype}")
    weights, count = WEIGHTS[attention](queries, keys), len(queries)
    largest = tolerance / len(keys)
    same = sum(int(((weights[i] - weights[i + 1 :]).abs().amax(1) <= largest).sum()) for i in range(count - 1))
    return same / (count * (count - 1) // 2)


# --- other attention of the hosts ------------------------------------------------------------------------------------


@MIXERS.register_module()
class CrossShapedAttention(nn.Module):
    """Softmax attention in stripes: half of the heads see rows of pixels, half see columns, `stripe` pixels wide.

    Args:
        dim: channels C, even if there are stripes.
        heads: number of attention heads, even if there are stripes; about C / 32 by default.
        stripe: width of the stripes in pixels; None for the whole map and all heads. Maps are filled up with zeros to
            whole stripes.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    The values of a stripe, convolved by a depth-wise 3x3 within it, are added (LePE). `forward(x (B, C, H, W)) -> (B,
    C, H, W)`. Source: CSWin Transformer, arXiv 2107.00652.
    """

    def __init__(self, dim: int, heads: int | None = None, stripe: int | None = 7, qkv_bias: bool = True):
        super().__init__()
        branches = 1 if stripe is None else 2
        if stripe is not None and stripe < 1:
            raise ValueError(f"CrossShapedAttention: stripe={stripe} must be at least 1, or None for the whole map")
        if dim % branches or (heads or 0) % branches:
            raise ValueError(f"CrossShapedAttention: with stripes, dim={dim} and heads={heads} must be even")
        self.heads = heads_of("CrossShapedAttention", dim // branches, heads and heads // branches)  # of a branch
        self.stripe = stripe
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.lepe = nn.ModuleList(depthwise(dim // branches, 3) for _ in range(branches))
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = x if self.stripe is None else fill(x, self.stripe)
        qkv = self.qkv(x.permute(0, 2, 3, 1)).unflatten(-1, (3, len(self.lepe), -1))
        parts = [self._attend(qkv[..., i, :], i, conv) for i, conv in enumerate(self.lepe)]
        y = parts[0] if self.stripe is None else torch.cat(parts, dim=-1)
        return self.proj(y[:, :height, :width]).permute(0, 3, 1, 2)

    def _attend(self, qkv: Tensor, axis: int, conv: nn.Module) -> Tensor:
        """One branch: (B, H, W, 3, C') -> (B, H, W, C'). Stripes are columns for axis 0, rows for axis 1."""
        height, width = qkv.shape[1:3]
        if self.stripe is None:
            stripes = qkv.unsqueeze(1)
        elif axis == 0:
            stripes = qkv.unflatten(2, (-1, self.stripe)).transpose(1, 2)
        else:
            stripes = qkv.unflatten(1, (-1, self.stripe))
        count = stripes.shape[:2]
        stripes = stripes.flatten(0, 1)  # (B · stripes, rows, columns, 3, C')
        size = stripes.shape[1:3]
        q, k, v = stripes.flatten(1, 2).unflatten(-1, (self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).unflatten(1, size)
        y = y + conv(stripes[..., 2, :].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = y.unflatten(0, count)
        y = y.transpose(1, 2) if self.stripe is not None and axis == 0 else y
        return y.reshape(count[0], height, width, y.shape[-1])


# --- parts of the networks -------------------------------------------------------------------------------------------


def _norm(dim: int) -> LayerNorm2d:
    return LayerNorm2d(dim, eps=1e-5)


class PatchNorm(nn.Module):
    """Patches that become pixels, then layer norm, then positions where there are some.

    Args:
        proj: convolution that makes pixels of the patches.
        dim: its output channels.
        positions: height and width of the map for which a table of positions is built, None for none. Other maps get it
            resized bilinearly, as PVT has it.
    """

    def __init__(self, proj: nn.Module, dim: int, positions: Sequence[int] | None = None):
        super().__init__()
        self.proj = proj
        self.norm = _norm(dim)
        self.position = nn.Identity() if positions is None else PositionTable(dim, positions, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        return self.position(self.norm(self.proj(x)))


class PatchMerging(nn.Module):
    """The four pixels of every 2x2 patch, column by column, side by side; layer norm, then a linear layer. Maps of odd
    sizes are filled up with zeros."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim)
        self.reduction = Linear(4 * in_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pixels = fill(x, 2).permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h, 2, w, 2, C)
        patches = pixels.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(patches)).permute(0, 3, 1, 2)


class ConvEmbedding(nn.Module):
    """A convolution, then layer norm: 7x7 with stride 4 for an image, 3x3 with stride 2 for a map. Images are filled up
    to multiples of four, so that sizes are rounded up."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride, padding)
        self.norm = _norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(fill(x, self.conv.stride[0])))


class CSwinBlock(Block):
    """The pre-norm block whose InLine makes its kernels of what the norm reads, not of what it gives."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        own = dict(context=x.mean((2, 3))) if isinstance(self.mixer, InLine) else {}
        x = x + self.drop_path(self.scale1(self.mixer(self.norm1(self.before(x)), **own)))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


def inline_blocks(types: Sequence[str], depths: Sequence[int]) -> list[int]:
    """How many blocks of each stage, the first ones, have InLine: all for "I", none for "S", n for "Mn".

    Raises:
        ValueError: another text, or more blocks than the stage has.
    """
    counts = []
    for letters, depth in zip(types, depths):
        if not re.fullmatch(r"I|S|M\d+", letters):
            raise ValueError(f"types={tuple(types)}: a stage takes 'I', 'S', or 'M' and a number, such as 'M2'")
        count = depth if letters == "I" else int(letters[1:] or 0)
        if count > depth:
            raise ValueError(f"types={tuple(types)}: {letters!r} is of a stage that has {depth} blocks")
        counts.append(count)
    return counts


# --- networks --------------------------------------------------------------------------------------------------------


class InLineDeiT(Isotropic):
    """DeiT with InLine in all blocks.

    Args:
        dim, depth, **common: as of `Isotropic`.
        heads: number of attention heads.
        kernel, qkv_bias: as of `InLine`.
    """

    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(
        self,
        dim: int = 192,
        depth: int = 12,
        heads: int = 6,
        kernel: str = "identity",
        qkv_bias: bool = True,
        **common,
    ):
        mixer = dict(type="InLine", heads=heads, kernel=kernel, qkv_bias=qkv_bias)
        super().__init__(dim, depth, mixer, class_token=0, class_position=True, **common)


class InLinePVT(Pyramid):
    """PVT (the first one) with InLine in all blocks, and a table of positions at every stage.

    Its convolutions lose what is left over beside whole patches, as the authors' do: maps are floor(floor(H / 4) / 2)
    ... high. Smaller images than the last stride are filled up to it.

    Args:
        dims, depths, mlp_ratio, layer_scale, drop_path_rate, **common: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage.
        img_size: side of the image for which the tables are built, or its height and width; other images get them
            resized.
        kernel, qkv_bias: as of `InLine`.
    """

    rounds_up = False
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: int | Sequence[int] = (2, 4, 10, 16),
        img_size: int | Sequence[int] = 224,
        kernel: str = "identity",
        qkv_bias: bool = True,
        mlp_ratio: float | Sequence[float] = (8, 8, 4, 4),
        **common,
    ):
        self.heads, self.img_size = per_stage("heads", heads, len(dims)), image_sides(img_size)
        self.kernel, self.qkv_bias = kernel, qkv_bias
        super().__init__(dims, depths, mlp_ratio=mlp_ratio, **common)
        self.min_size = self.strides[-1]

    def _patches(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        ratio, stride = self.ratios[stage], self.strides[stage]
        size = [max(side, self.strides[-1]) // stride for side in self.img_size]
        return PatchNorm(nn.Conv2d(in_dim, dim, ratio, ratio), dim, size)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return self._patches(0, in_channels, dim)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return self._patches(stage, in_dim, dim)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        mixer = InLineOfPVT(dim, self.heads[stage], self.kernel, qkv_bias=self.qkv_bias)
        return Block(dim, mixer, Mlp(dim, self.mlp_ratio[stage]), drop_path, self.layer_scale[stage])

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes)


class InLineSwin(Pyramid):
    """Swin with InLine in its first stages or blocks, and attention in windows in the others.

    Args:
        dims, depths, mlp_ratio, layer_scale, drop_path_rate, **common: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage.
        types: for each stage "I" (InLine), "S" (softmax attention in windows), or "M" and the number of its first
            blocks that have InLine.
        window: side of the windows of softmax attention, at most that of the map of an image of `img_size`.
        img_size: side of the images of the classifier, or their height and width, the smaller of which counts. Every
            other block shifts its windows by half of one, but in a classifier not where one window is the whole map.
        kernel, qkv_bias: as of `InLine`; the bias is of the attention in windows, too.
    """

    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    fixed_sizes = FIXED_BY_WINDOWS

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: int | Sequence[int] = (3, 6, 12, 24),
        types: str | Sequence[str] = ("I", "I", "I", "S"),
        window: int = 7,
        img_size: int | Sequence[int] = 224,
        kernel: str = "identity",
        qkv_bias: bool = True,
        **common,
    ):
        self.heads = per_stage("heads", heads, len(dims))
        self.inline_blocks = inline_blocks(per_stage("types", types, len(dims)), depths)
        self.window, self.img_size = window, image_sides(img_size)
        self.kernel, self.qkv_bias = kernel, qkv_bias
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return PatchNorm(Patches(in_channels, dim, self.strides[0]), dim)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return PatchMerging(in_dim, dim)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        heads, side = self.heads[stage], -(-min(self.img_size) // self.strides[stage])
        mixer: nn.Module
        if index < self.inline_blocks[stage]:
            mixer = InLine(dim, heads, self.kernel, qkv_bias=self.qkv_bias)
        else:
            window = min(self.window, side)
            shifts = index % 2 == 1 and (self.num_classes is None or side > window)
            mixer = WindowAttention(dim, heads, window, window // 2 if shifts else 0, self.qkv_bias)
        mlp = Mlp(dim, self.mlp_ratio[stage])
        return Block(dim, mixer, mlp, drop_path, self.layer_scale[stage], norm=_norm)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return _norm(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, before=_norm(dim))


class InLineCSwin(Pyramid):
    """CSwin with InLine in its first stages; the last stage has attention to the whole map, the others between in
    stripes, as far as their maps are wider than one.

    Args:
        dims, depths, mlp_ratio, layer_scale, drop_path_rate, **common: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage.
        types: as of `InLineSwin`, with stripes in the place of windows.
        stripe: width of the stripes.
        img_size: side of the image, or its height and width. A stage whose map of it is no wider than a stripe has
            attention to the whole map, of images of other sizes too.
        kernel, qkv_bias: as of `InLine`; the bias is of the attention in stripes, too.
    """

    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 18, 1),
        heads: int | Sequence[int] = (2, 4, 8, 16),
        types: str | Sequence[str] = ("I", "I", "S", "S"),
        stripe: int = 7,
        img_size: int | Sequence[int] = 224,
        kernel: str = "identity",
        qkv_bias: bool = True,
        **common,
    ):
        self.heads = per_stage("heads", heads, len(dims))
        self.inline_blocks = inline_blocks(per_stage("types", types, len(dims)), depths)
        self.stripe, self.img_size = stripe, image_sides(img_size)
        self.kernel, self.qkv_bias = kernel, qkv_bias
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return ConvEmbedding(in_channels, dim, 7, self.strides[0], 2)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return ConvEmbedding(in_dim, dim, 3, self.ratios[stage], 1)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        heads, side = self.heads[stage], -(-max(self.img_size) // self.strides[stage])
        whole = stage == len(self.dims) - 1 or side <= self.stripe
        mixer: nn.Module
        if index < self.inline_blocks[stage]:
            mixer = InLine(dim, heads, self.kernel, lepe=True, qkv_bias=self.qkv_bias)
        else:
            mixer = CrossShapedAttention(dim, heads, None if whole else self.stripe, self.qkv_bias)
        mlp = Mlp(dim, self.mlp_ratio[stage])
        return CSwinBlock(dim, mixer, mlp, drop_path, self.layer_scale[stage], norm=_norm)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return _norm(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, before=_norm(dim))


def _deit(dim: int, side: int) -> dict:
    return dict(dim=dim, heads=dim // 32, img_size=side)


def _doubling(width: int, heads: int, *depths: int, **others) -> dict:
    twice = [2**i for i in range(4)]
    return dict(dims=tuple(width * n for n in twice), depths=depths, heads=tuple(heads * n for n in twice), **others)


DEIT = {
    "inline_deit_t": Variant(_deit(192, 224), 6_477_736, 1.1, 74.5, drop_path=0.1),
    "inline_deit_s": Variant(_deit(320, 288), 16_734_760, 5.0, 80.2, size=288, drop_path=0.1),
    "inline_deit_b": Variant(_deit(384, 448), 23_797_096, 17.2, 82.3, size=448, drop_path=0.1),
}
PVT = {
    "inline_pvt_t": Variant({}, 12_032_232, 2.0, 78.2, drop_path=0.1),
    "inline_pvt_s": Variant(dict(depths=(3, 4, 6, 3)), 21_556_136, 3.9, 82.0, drop_path=0.1),
    "inline_pvt_m": Variant(dict(depths=(3, 4, 18, 3)), 37_618_856, 6.9, 83.2, drop_path=0.3),
    "inline_pvt_l": Variant(dict(depths=(3, 8, 27, 3)), 51_154_280, 10.2, 83.6, drop_path=0.3),
}
SWIN = {
    "inline_swin_t": Variant({}, 29_223_544, 4.5, 82.4, drop_path=0.2),
    "inline_swin_s": Variant(
        _doubling(96, 3, 2, 2, 18, 2, types=("I", "I", "S", "S")), 49_793_296, 8.7, 83.6, drop_path=0.3
    ),
    "inline_swin_b": Variant(
        _doubling(128, 4, 2, 2, 18, 2, types=("I", "I", "M2", "S")), 88_350_120, 15.4, 84.1, drop_path=0.5
    ),
}
CSWIN = {
    "inline_cswin_t": Variant({}, 20_604_520, 4.3, 83.2, drop_path=0.2),
    "inline_cswin_s": Variant(_doubling(64, 2, 3, 6, 29, 2), 33_032_872, 6.8, 83.8, drop_path=0.4),
    "inline_cswin_b": Variant(_doubling(96, 4, 3, 6, 29, 2), 73_413_640, 14.9, 84.5, drop_path=0.5),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------


def _stage(group: str, rest: str, offset: int = 0) -> Callable[[re.Match], str]:
    """A replacement in which stages, counted from 1 there, are counted from 0."""
    return lambda m: f"stages.{int(m[group]) - 1 + offset}.{rest}"


_HEAD: Rules = [(r"^norm\.", r"head.before."), (r"^head\.(weight|bias)$", r"head.fc.\1")]

DEIT_RULES: Rules = [
    (r"^patch_embed\.proj\.", r"stem."),
    (r"^pos_embed$", r"position.weight"),
    (r"^cls_token$", r"cls_token.weight"),
    (r"\.attn\.", r".mixer."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

PVT_RULES: Rules = [
    (r"^pos_embed1$", r"stem.position.weight"),
    (r"^patch_embed1\.", r"stem."),
    (r"^pos_embed(?P<n>\d)$", _stage("n", "downsample.position.weight")),
    (r"^patch_embed(?P<n>\d)\.", _stage("n", "downsample.")),
    (r"^block(?P<n>\d)\.", _stage("n", "blocks.")),
    (r"\.attn\.", r".mixer."),
    *_HEAD,
]

SWIN_RULES: Rules = [
    (r"\.relative_position_index$|\.attn_mask$", None),  # which ours computes
    (r"^patch_embed\.", r"stem."),
    (r"^layers\.(?P<n>\d)\.downsample\.", _stage("n", "downsample.", 2)),
    (r"^layers\.(\d)\.", r"stages.\1."),
    (r"\.attn\.", r".mixer."),
    (r"\.relative_position_bias_table$", r".table"),
    *_HEAD,
]

CSWIN_RULES: Rules = [
    (r"^stage1_conv_embed\.0\.", r"stem.conv."),
    (r"^stage1_conv_embed\.2\.", r"stem.norm."),
    (r"^merge(?P<n>\d)\.", _stage("n", "downsample.", 1)),
    (r"^stage(?P<n>\d)\.", _stage("n", "blocks.")),
    (r"\.(qkv|proj)\.", r".mixer.\1."),
    (r"\.attns\.(\d)\.get_v\.", r".mixer.lepe.\1."),
    (r"\.attns\.0\.residual\.", r".mixer.residual."),
    *_HEAD,
]

register(InLineDeiT, DEIT, DEIT_RULES)
register(InLinePVT, PVT, PVT_RULES)
register(InLineSwin, SWIN, SWIN_RULES)
register(InLineCSwin, CSWIN, CSWIN_RULES)
