"""Attention diversification: a loss that is low where the queries of an attention look at different pixels.

"Robustifying Token Attention for Vision Transformers", ICCV 2023, arXiv 2303.11126;
https://github.com/guoyongcs/TAPADL (MIT).

Of maps A (B, heads, Q, N), whose rows sum to 1, M is the mean over the heads and s the mean of M over the queries. What
is not above t = threshold / N in M or in s becomes 0, and the loss is the mean over images and queries of

    cos(s, M_i) = s · M_i / max(|s|, ε) max(|M_i|, ε),   ε = 1e-8.

It lies in [0, 1]: 1 where all queries have one row with an entry above t, 0 where nothing exceeds t. The gradient flows
through M and s. The loss of a network is the sum over its L attentions over L + 1e-6. The released function mixes up
the axes of a batch of one image; this one does not.

An attention that is `Diversified` says the loss of what it did while a network trains: `with noted(network) as losses`.
`attend` computes it with the attention itself, in tiles of a few queries: maps of (B, heads, Q, N) are never kept.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-8  # least norm of a row
TILE = dict(cpu=2**19)  # elements of a tile of maps; on a CPU they fit its cache
TILE_ELSEWHERE = 2**26
KEPT = 2**24  # elements of the mean maps of a tile's images up to which these wait for the second look


def diversification_loss(maps: Tensor, threshold: float = 2.0) -> Tensor:
    """The loss of one attention that gives its maps, see above.

    Args:
        maps: attention (B, heads, Q, N) of Q queries to N pixels, in rows that sum to 1; any float type, of which half
            ones are read as float32.
        threshold: least attention that counts, in units of 1 / N.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: the maps have another number of axes, or are empty; the threshold is negative.
    """
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"maps must be of shape (B, heads, queries, pixels) and not empty, got {tuple(maps.shape)}")
    check_threshold("threshold", threshold)
    mean = maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(1)
    least = threshold / maps.shape[-1]
    shared = _above(mean.mean(1, keepdim=True), least)
    return F.cosine_similarity(shared, _above(mean, least), dim=-1, eps=EPS).mean()


def check_threshold(name: str, threshold: float) -> None:
    """Refuse thresholds that are no finite numbers of at least 0."""
    if not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, in units of 1 / pixels, got {threshold!r}")


def _above(x: Tensor, least: float) -> Tensor:
    return x.where(x > least, 0)


# --- attention and its loss in one -----------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, threshold: float = 2.0) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √d) v and the loss of its maps.

    Args:
        q: queries (B, heads, Q, d).
        k, v: keys (B, heads, N, d) and values (B, heads, N, e).
        threshold: as of `diversification_loss`.

    Returns:
        The attention (B, heads, Q, e), and the loss in float32 (float64 of float64). Both have first derivatives.
    """
    return _Attend.apply(q, k, v, threshold)


def _groups(images: int, heads: int, queries: int, pixels: int, device: torch.device) -> tuple[int, int]:
    """How many images, and how many queries of each, make a tile."""
    room = max(1, TILE.get(device.type, TILE_ELSEWHERE) // (heads * pixels))
    return (1, min(room, queries)) if room < queries else (min(images, room // queries), queries)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)).softmax(-1)


def _over_norm(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True).clamp(min=EPS).reciprocal()


class _Attend(torch.autograd.Function):
    """`attend`. Forward, M of some images is made tile by tile, and looked at again when s is known; where even M is
    large, it is made again. Backward makes the maps of a tile again, as fused attentions do."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, threshold: float):
        (images, heads, queries, dim), pixels = q.shape, k.shape[2]
        many, few = _groups(images, heads, queries, pixels, q.device)
        least, keeps = threshold / pixels, many * queries * pixels <= KEPT
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, v = (q * dim**-0.5).contiguous(), k.contiguous(), v.contiguous()  # once, not in every product
        out = v.new_empty(images, heads, queries, v.shape[-1])
        shared = torch.zeros(images, 1, pixels, dtype=wide, device=q.device)
        pull = torch.empty_like(shared)  # derivative of the summed cosines by s
        total = torch.zeros((), dtype=wide, device=q.device)
        for first in range(0, images, many):
            b = slice(first, first + many)
            means: list[Tensor] = []
            for start in range(0, queries, few):
                rows = slice(start, start + few)
                maps = _softmax(q[b, :, rows], k[b])
                out[b, :, rows] = maps.to(v.dtype) @ v[b]
                mean = maps.mean(1)
                shared[b] += mean.sum(1, keepdim=True) / queries
                if keeps:
                    means.append(mean)
            y = shared[b] = _above(shared[b], least)
            along = y * _over_norm(y)
            sums = torch.zeros_like(y)
            for number, start in enumerate(range(0, queries, few)):
                mean = means[number] if keeps else _softmax(q[b, :, start : start + few], k[b]).mean(1)
                x = _above(mean, least)
                sums += _over_norm(x).mT @ x
            cosines = (sums * along).sum(-1, keepdim=True)
            total += cosines.sum()
            pull[b] = ((sums - cosines * along) * _over_norm(y)).where(y > 0, 0)
        ctx.save_for_backward(q, k, v, shared, pull)
        ctx.threshold = threshold
        return out, total / (images * queries)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor, grad_loss: Tensor):
        q, k, v, shared, pull = ctx.saved_tensors
        (images, heads, queries, dim), pixels = q.shape, k.shape[2]
        many, few = _groups(images, heads, queries, pixels, q.device)
        least = ctx.threshold / pixels
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grad_out = grad_out.contiguous()
        each = grad_loss / (images * queries * heads)  # of the mean over heads, too
        for first in range(0, images, many):
            b = slice(first, first + many)
            along, common = shared[b] * _over_norm(shared[b]), pull[b] / queries
            for start in range(0, queries, few):
                rows = slice(start, start + few)
                maps = _softmax(q[b, :, rows], k[b])
                x = _above(maps.mean(1), least)
                over = _over_norm(x)
                push = torch.addcmul(along, x, (x @ along.mT) * over * over, value=-1) * over
                of_mean = each * torch.where(x > 0, push + common, common)
                grad = (grad_out[b, :, rows] @ v[b].mT).to(maps.dtype).add_(of_mean.unsqueeze(1))
                grad = torch._softmax_backward_data(grad, maps, -1, maps.dtype).to(q.dtype)
                grad_v[b] += maps.to(v.dtype).mT @ grad_out[b, :, rows]
                grad_q[b, :, rows] = grad @ k[b]
                grad_k[b] += grad.mT @ q[b, :, rows]
        return grad_q.mul_(dim**-0.5), grad_k, grad_v, None


# --- attentions that say their loss ----------------------------------------------------------------------------------


class Diversified(nn.Module):
    """An attention that says the loss of its maps while it trains. It calls `self.attend(q, k, v)` in place of
    `F.scaled_dot_product_attention`, or gives maps that it makes to `self.note(maps)`.

    Attributes:
        threshold: as of `diversification_loss`; None, by default, for no loss. `diversify` sets it.
        losses: list that takes the losses, or None. `noted` sets it.
    """

    threshold: float | None = None
    losses: list[Tensor] | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q kᵀ / √d) v of q (B, heads, Q, d), k (B, heads, N, d) and v (B, heads, N, e)."""
        if self.threshold is None or not self.training:
            return F.scaled_dot_product_attention(q, k, v)
        rows, loss = attend(q, k, v, self.threshold)
        self._take(loss)
        return rows

    def note(self, maps: Tensor) -> None:
        """Say the loss of maps (B, heads, Q, N)."""
        if self.threshold is not None and self.training:
            self._take(diversification_loss(maps, self.threshold))

    def _take(self, loss: Tensor) -> None:
        if self.losses is not None:  # activation checkpointing computes again behind `noted`
            self.losses.append(loss)


def diversify(network: nn.Module, threshold: float = 2.0) -> None:
    """Have every `Diversified` attention of a network say its loss in training.

    Raises:
        ValueError: the network has none.
    """
    check_threshold("threshold", threshold)
    attentions = [part for part in network.modules() if isinstance(part, Diversified)]
    if not attentions:
        raise ValueError(
            f"{type(network).__name__} has no attention that says how alike its queries look (see Diversified of "
            "attlas.backbones.layers), so attention diversification would do nothing"
        )
    for part in attentions:
        part.threshold = float(threshold)


@contextmanager
def noted(network: nn.Module) -> Iterator[list[Tensor]]:
    """The list of the losses of the attentions of a network that run inside the `with`."""
    losses: list[Tensor] = []
    attentions = [part for part in network.modules() if isinstance(part, Diversified)]
    for part in attentions:
        part.losses = losses
    try:
        yield losses
    finally:
        for part in attentions:
            part.losses = None


def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """The loss of a network: the sum over its L attentions, over L + 1e-6.

    Raises:
        ValueError: there are none, as where the whole network is frozen.
    """
    if not losses:
        raise ValueError("no attention of the network said its loss: `diversify` it, and have one train")
    return torch.stack(list(losses)).sum() / (len(losses) + 1e-6)
