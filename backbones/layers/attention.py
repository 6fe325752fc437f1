"""Attention to all pixels: of pixels, and of class tokens; and what the checks of all attentions share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MIXERS
from .diversification import Diversified
from .linear import Linear


def heads_of(mixer: str, dim: int, heads: int | None, head_dim: int = 32, multiple: int = 1) -> int:
    """The number of heads: `heads`, or by default the one that divides the channels into heads nearest to `head_dim`.

    Args:
        mixer: name for the error.
        dim: channels.
        heads: number of heads, or None.
        head_dim: channels of a head that the default aims at.
        multiple: divisor of the channels of a default head, where `dim` allows it.

    Raises:
        ValueError: `heads` does not divide the channels; says which numbers do.
    """
    dividing = [n for n in range(1, dim + 1) if dim % n == 0]
    if heads is None:
        fitting = [n for n in dividing if dim // n % multiple == 0] or [1]
        heads = min(fitting, key=lambda n: abs(dim / n - head_dim))
    if heads not in dividing:
        few = [n for n in dividing if n <= 64]
        raise ValueError(f"{mixer}: dim={dim} is not divisible by heads={heads}; heads may be one of {few}")
    return heads


def as_rows(*maps: Tensor) -> tuple[Tensor, ...]:
    """Copies of views (..., N, d) whose channels lie side by side, as the fused attention of a GPU wants them. It looks
    at the step from row to row even where there is one row, and there `contiguous()` would copy nothing."""
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in maps)


@MIXERS.register_module()
class Attention(Diversified):
    """Multi-head self-attention over all pixels: softmax(q kᵀ / √d) v, then a linear layer.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with `tokens (B, T, C)`, which take part, a pair of both. It is
    `Diversified`; tokens are then queries and pixels, too. Files that keep queries, keys and values apart ("q.weight",
    "k.weight", "v.weight") load.
    Source: arXiv 1706.03762, 2010.11929.
    """

    takes_tokens = True

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads_of("Attention", dim, heads)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        for kind in ("weight", "bias"):
            apart = [f"{prefix}{part}.{kind}" for part in "qkv"]
            if all(name in state_dict for name in apart):
                state_dict[f"{prefix}qkv.{kind}"] = torch.cat([state_dict.pop(name) for name in apart])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v (B, heads, N, d)."""
        qkv = self.qkv(rows).unflatten(-1, (3, self.heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        height, width = x.shape[-2:]
        rows = x.flatten(2).transpose(1, 2)
        if tokens is not None:
            rows = torch.cat([tokens, rows], dim=1)
        rows = self.proj(self.attend(*self._split(rows)).transpose(1, 2).flatten(2))
        count = 0 if tokens is None else tokens.shape[1]
        x = rows[:, count:].transpose(1, 2).unflatten(2, (height, width))
        return x if tokens is None else (x, rows[:, :count])

    def weights(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """How all pixels look at tokens and pixels, by head: (B, heads, H · W, T + H · W), rows with sums of 1. What is
        distilled from a network; `forward` needs none of it."""
        rows = x.flatten(2).transpose(1, 2)
        count = 0 if tokens is None else tokens.shape[1]
        q, k, _ = self._split(rows if tokens is None else torch.cat([tokens, rows], dim=1))
        return (q[:, :, count:] * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)  # scaled first, for float16

    def attention_maps(self, x: Tensor, place: tuple[int, int], tokens: Tensor | None = None) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W). The sum is 1 less what
        goes to the tokens."""
        height, width = x.shape[-2:]
        rows = x.flatten(2).transpose(1, 2)
        count = 0 if tokens is None else tokens.shape[1]
        q, k, _ = self._split(rows if tokens is None else torch.cat([tokens, rows], dim=1))
        logits = q[:, :, count + place[0] * width + place[1], None] * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        return logits.softmax(-1)[..., count:].unflatten(-1, (height, width)).squeeze(2)


class ClassAttention(nn.Module):
    """Attention of class tokens to themselves and to all pixels: softmax(q kᵀ / √d) v, then a linear layer, where the
    queries are those of the tokens alone. Its cost is linear in the pixels.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        qkv_bias: whether queries, keys and values have a bias.

    `forward(x (B, C, H, W), tokens (B, T, C)) -> (B, T, C)`. Source: CaiT, arXiv 2103.17239.
    """

    takes_tokens = True

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads_of("ClassAttention", dim, heads)
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def _split(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, heads, T, d), k and v (B, heads, T + N, d)."""
        q = self.q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(torch.cat([tokens, x.flatten(2).transpose(1, 2)], dim=1)).unflatten(-1, (2, self.heads, -1))
        return q, *kv.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(*self._split(x, tokens)).transpose(1, 2).flatten(2))

    def attention_maps(self, x: Tensor, place: tuple[int, int], tokens: Tensor) -> Tensor:
        """How the first token looks at every pixel, whatever the place, by head: (B, heads, H, W). The sum is 1 less
        what goes to the tokens."""
        q, k, _ = self._split(x, tokens)
        logits = q[:, :, :1] * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        return logits.softmax(-1)[:, :, 0, tokens.shape[1] :].unflatten(-1, x.shape[-2:])
