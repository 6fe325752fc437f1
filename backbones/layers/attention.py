"""Global multi-head attention, and what the checks of all attentions share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MIXERS


def heads_of(mixer: str, dim: int, heads: int | None, head_dim: int = 32, multiple: int = 1) -> int:
    """The number of heads: `heads`, or by default the one that divides the channels into heads nearest to `head_dim`.

    Args:
        multiple: what the channels of a default head are divisible by, where dim allows it.

    Raises:
        ValueError: they do not divide the channels; says which numbers do.
    """
    dividing = [n for n in range(1, dim + 1) if dim % n == 0]
    if heads is None:
        fitting = [n for n in dividing if dim // n % multiple == 0] or [1]
        heads = min(fitting, key=lambda n: abs(dim / n - head_dim))
    if heads not in dividing:
        few = [n for n in dividing if n <= 64]
        raise ValueError(f"{mixer}: dim={dim} is not divisible by heads={heads}; heads may be one of {few}")
    return heads


@MIXERS.register_module()
class Attention(nn.Module):
    """Multi-head self-attention over all pixels: softmax(q kᵀ / √d) v, then a linear layer.

    Args:
        dim: channels C.
        heads: their number; about C / 32 by default.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with `tokens (B, T, C)`, which take part, a pair of both.
    Source: arXiv 1706.03762, 2010.11929.
    """

    takes_tokens = True

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads_of("Attention", dim, heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v (B, heads, N, d)."""
        qkv = self.qkv(rows).unflatten(-1, (3, self.heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        height, width = x.shape[-2:]
        rows = x.flatten(2).transpose(1, 2)
        if tokens is not None:
            rows = torch.cat([tokens, rows], dim=1)
        rows = self.proj(F.scaled_dot_product_attention(*self._split(rows)).transpose(1, 2).flatten(2))
        count = 0 if tokens is None else tokens.shape[1]
        x = rows[:, count:].transpose(1, 2).unflatten(2, (height, width))
        return x if tokens is None else (x, rows[:, :count])

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W), sums of 1. Of the pixels
        alone: what goes to tokens beside the map is left out."""
        height, width = x.shape[-2:]
        q, k, _ = self._split(x.flatten(2).transpose(1, 2))
        logits = q[:, :, place[0] * width + place[1], None] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return logits.softmax(-1).unflatten(-1, (height, width)).squeeze(2)
