"""NPRF: global attention with a bias for every distance, at a cost of N log N.

"Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding", NeurIPS 2021, arXiv 2106.12566.
There is no code of the authors' to load from, and no network: the attention replaces that of any transformer. The
form on maps, class tokens and resizing are ours. `attlas.kernels.nprf_attention` has the formula.

Queries and keys of unit length bound the variance of random features, which otherwise grows exponentially with their
lengths; the biases give back the sharpness that unit length takes. So it trains from scratch.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import nprf_attention
from ...kernels.nprf_attention import FORMS, behind, log_features
from ...registry import MIXERS
from ..layers import Linear, heads_of
from ..layers.position import resize_table
from ..skeletons.options import check_whole, per_stage


def random_directions(count: int, dim: int, orthogonal: bool = True) -> Tensor:
    """Directions (count, dim), each distributed as N(0, I). With `orthogonal`, those of each block of `dim` are
    orthogonal to each other, which lowers the variance of what they estimate."""
    if not orthogonal:
        return torch.randn(count, dim)
    blocks = []
    for _ in range(-(-count // dim)):
        basis, triangle = torch.linalg.qr(torch.randn(dim, dim))
        blocks.append((basis * triangle.diagonal().sign()).mT)  # the signs make it uniform among all bases
    return torch.cat(blocks)[:count] * torch.randn(count, dim).norm(dim=1, keepdim=True)


@MIXERS.register_module()
class NPRFAttention(nn.Module):
    """Kernelized attention with relative positions, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        num_features: number m of random features.
        size: side of the map that the table of biases is made for, or its height and width; it is resized (bicubic)
            for others.
        scan: "grid" for biases of (rows, columns) from pixel to pixel, or "row" for those of the distance when pixels
            are read row by row, as a sequence.
        causal: whether a pixel sees only itself and those before it, row by row.
        class_token: whether class tokens may stand beside the map, with biases of their own. Not with `causal`.
        orthogonal: whether the directions of a head's width are orthogonal.
        shared: whether all heads have the same directions.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        form: "auto", "fft" or "dense", as of `nprf_attention`.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with `tokens (B, T, C)`, where `class_token` allows them, a pair of both.
    The directions are the buffer `features` (m, C / heads) or (heads, m, C / heads), saved with the weights; the biases
    `rel_bias` (heads, 2H - 1, 2W - 1) or (heads, 2HW - 1) begin as zeros.
    """

    no_weight_decay = ("rel_bias", "token_bias")
    features: Tensor

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        num_features: int = 32,
        size: int | tuple[int, int] = 14,
        scan: str = "grid",
        causal: bool = False,
        class_token: bool = False,
        orthogonal: bool = True,
        shared: bool = True,
        qkv_bias: bool = True,
        form: str = "auto",
    ):
        super().__init__()
        height, width = per_stage("NPRFAttention.size", size, 2, "sides")
        check_whole("NPRFAttention.size", [height, width])
        check_whole("NPRFAttention.num_features", [num_features])
        if scan not in ("grid", "row"):
            raise ValueError(f"NPRFAttention: scan={scan!r} must be 'grid' or 'row'")
        if form not in FORMS:
            raise ValueError(f"NPRFAttention: form={form!r} must be one of {FORMS}")
        if causal and class_token:
            raise ValueError("NPRFAttention: class_token=True stands before and behind all pixels, got causal=True")
        self.heads = heads_of("NPRFAttention", dim, heads)
        self.scan, self.causal, self.takes_tokens, self.form = scan, causal, class_token, form
        self.orthogonal = orthogonal
        self.q, self.k, self.v = (Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.proj = Linear(dim, dim)
        distances = (2 * height - 1, 2 * width - 1) if scan == "grid" else (2 * height * width - 1,)
        self.rel_bias = nn.Parameter(torch.empty(self.heads, *distances))
        self.token_bias = nn.Parameter(torch.empty(self.heads, 3)) if class_token else None
        each = () if shared else (self.heads,)
        self.register_buffer("features", torch.empty(*each, num_features, dim // self.heads))
        self.reset_weights()

    @torch.no_grad()
    def reset_weights(self) -> None:
        nn.init.zeros_(self.rel_bias)
        if self.token_bias is not None:
            nn.init.zeros_(self.token_bias)
        count, dim = self.features.shape[-2:]
        drawn = [random_directions(count, dim, self.orthogonal) for _ in self.features.view(-1, count, dim)]
        self.features.copy_(torch.stack(drawn).view_as(self.features))

    def biases(self, height: int, width: int) -> Tensor:
        """The biases for a map: (heads, 2H - 1, 2W - 1), or (heads, 2HW - 1) of a row scan. With `causal`, those of
        distances to what is behind mean nothing."""
        table = self.rel_bias if self.scan == "grid" else self.rel_bias.unsqueeze(1)
        if self.causal:  # so that nothing of them mixes in: each becomes that of the opposite distance
            table = table.flip((1, 2)).where(behind(table), table)
        if self.scan == "grid":
            return resize_table(table.unsqueeze(0), (2 * height - 1, 2 * width - 1)).squeeze(0)
        return resize_table(table.unsqueeze(0), (1, 2 * height * width - 1))[0, :, 0]

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v (B, heads, N, d)."""
        q, k, v = (part(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return q, k, v

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        height, width = x.shape[-2:]
        rows, count = x.flatten(2).transpose(1, 2), 0
        if tokens is not None:
            rows, count = torch.cat([tokens, rows], dim=1), tokens.shape[1]
        options: dict[str, Any] = dict(
            token_bias=self.token_bias if count else None, causal=self.causal, form=self.form
        )
        y = nprf_attention(*self._split(rows), self.features, self.biases(height, width), **options)
        rows = self.proj(y.transpose(1, 2).flatten(2))
        x = rows[:, count:].transpose(1, 2).unflatten(2, (height, width))
        return x if tokens is None else (x, rows[:, :count])

    def attention_maps(self, x: Tensor, place: tuple[int, int], tokens: Tensor | None = None) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W). The sum is 1 less what
        goes to the tokens."""
        (height, width), (row, column) = x.shape[-2:], place
        rows, count = x.flatten(2).transpose(1, 2), 0
        if tokens is not None:
            rows, count = torch.cat([tokens, rows], dim=1), tokens.shape[1]
        q, k, _ = self._split(rows)
        wide, number = torch.promote_types(q.dtype, torch.float32), row * width + column
        q, k = (log_features(part, self.features.to(wide)) for part in (q[:, :, count + number, None], k))
        biases = self.biases(height, width).to(wide)
        if self.scan == "grid":
            biases = biases[:, height - 1 - row : 2 * height - 1 - row, width - 1 - column : 2 * width - 1 - column]
        else:
            biases = biases[:, height * width - 1 - number : 2 * height * width - 1 - number]
        biases = biases.flatten(1)
        if self.causal:
            biases = biases.where(torch.arange(height * width, device=x.device) <= number, -torch.inf)
        if count:
            assert self.token_bias is not None
            biases = torch.cat([self.token_bias[:, :1].to(wide).expand(-1, count), biases], dim=1)
        weights = (torch.logsumexp(q + k, dim=-1) + biases).softmax(-1)
        return weights[..., count:].unflatten(-1, (height, width))
