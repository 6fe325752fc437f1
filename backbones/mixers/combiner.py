"""Combiner: global attention in which each pixel sees some pixels directly and all others through summaries.

"Combiner: Full Attention Transformer with Sparse Computation Cost", NeurIPS 2021, arXiv 2107.05768;
https://github.com/google-research/google-research/tree/master/combiner (Apache-2.0), which has released no weights.
There it is a model of sequences; here the rows of a map are the segments, unless a length is given. The formulas are
those of `attlas.kernels.combiner_attention`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import combiner_fixed, combiner_logsparse, combiner_mixture, combiner_rowmajor, combiner_rows
from ...kernels.combiner_attention import EMPTY, POOLINGS
from ...registry import MIXERS
from ..layers import Linear, heads_of
from ..skeletons.options import check_whole

FORMS = ("fixed", "logsparse", "rowmajor", "mixture")
TRANSFORMS = ("identity", "relu", "deepset")
ROW_SUMMARIES = ("none", "wsum", "proj", "wsum_proj")


@MIXERS.register_module()
class CombinerAttention(nn.Module):
    """Combiner's attention, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        form: "rowmajor" (own row, and the own column's view of other rows), "mixture" (own row and column, and spans of
            the others), "fixed" (own row, and summaries of rows) or "logsparse" (blocks of 2^l pixels before it).
        causal: whether a pixel sees only itself and those before it, row by row; "logsparse" has no other form.
        segment: pixels of a segment, when the map is read row by row as a sequence; None for segments that are the rows
            of the map. Not for "logsparse".
        pad: whether `segment` need not divide the number of pixels.
        pooling: how keys and queries of a span become one, of "fixed" and "mixture": "max", "sum" or "mean"; None for
            what the release has, "sum" for a mixture that is not causal, else "max".
        transform: what becomes of queries and keys before they are pooled, of "fixed": "identity", "relu" or "deepset"
            (a linear layer and ReLU).
        row_summary: keys by which other rows see a pixel, of "rowmajor": "none" but its own; "wsum" (the default), the
            keys of its row, mixed as the values are; "proj" and "wsum_proj", a linear layer, the sum with the input, a
            norm, and a linear layer, of the mixed values or of those keys.
        empty: what spans beyond the border are, of "mixture": "masked", or "mean" as in the release, a slip.
        bias: whether all linear layers of queries, keys, values and output have a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. The release's dropout within the attention is left out.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        form: str = "rowmajor",
        causal: bool = False,
        segment: int | None = None,
        pad: bool = True,
        pooling: str | None = None,
        transform: str | None = None,
        row_summary: str | None = None,
        empty: str | None = None,
        bias: bool = False,
    ):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"CombinerAttention: form={form!r} must be one of {FORMS}")
        if form == "logsparse" and not causal:
            raise ValueError("CombinerAttention: form='logsparse' must be causal, got causal=False")
        if segment is not None:
            check_whole("CombinerAttention.segment", [segment])
        of_forms = {
            "segment": (segment, ("fixed", "rowmajor", "mixture"), None),
            "pooling": (pooling, ("fixed", "mixture"), POOLINGS),
            "transform": (transform, ("fixed",), TRANSFORMS),
            "row_summary": (row_summary, ("rowmajor",), ROW_SUMMARIES),
            "empty": (empty, ("mixture",), EMPTY),
        }
        for name, (value, forms, choices) in of_forms.items():
            if value is not None and form not in forms:
                raise ValueError(
                    f"CombinerAttention: {name}={value!r} is of form={' or '.join(map(repr, forms))}, got {form!r}"
                )
            if value is not None and choices and value not in choices:
                raise ValueError(f"CombinerAttention: {name}={value!r} must be one of {choices}")
        if causal and empty == "mean":
            raise ValueError("CombinerAttention: empty='mean' is of a mixture that is not causal, got causal=True")
        self.heads = heads_of("CombinerAttention", dim, heads)
        self.form, self.causal, self.segment, self.pad = form, causal, segment, pad
        self.pooling, self.transform, self.empty = pooling, transform or "identity", empty or "masked"
        self.row_summary = (row_summary or "wsum") if form == "rowmajor" else "none"
        self.fixed_sizes: dict[str, dict[str, str]] = {}  # of exports, as networks have it
        if form == "logsparse":
            why = "the number of blocks hangs on that of the pixels"
            self.fixed_sizes = {suffix: dict(height=why, width=why) for suffix in (".onnx", ".pt2")}
        elif form == "mixture" and (pooling or ("max" if causal else "sum")) == "max":
            why = "ONNX has no running maximum, and the steps to one hang on the size"
            self.fixed_sizes = {".onnx": dict(height=why, width=why)}
        self.qkv = Linear(dim, 3 * dim, bias=bias)
        self.proj = Linear(dim, dim, bias=bias)
        if self.transform == "deepset":
            self.deepset_q, self.deepset_k = (Linear(dim // self.heads, dim // self.heads) for _ in range(2))
        if "proj" in self.row_summary:
            self.row_in, self.row_norm, self.row_out = Linear(dim, dim), nn.LayerNorm(dim), Linear(dim, dim, bias=bias)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v (B, heads, N, d)."""
        return self.qkv(rows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _by_heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attention(self, rows: Tensor, width: int) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
        """The attention of a map's pixels (B, N, C) as a function of the values, and its keywords: the values, and what
        has been made of them already."""
        q, k, v = self._split(rows)
        if self.form == "logsparse":
            return partial(combiner_logsparse, q, k), dict(v=v)
        segment = width if self.segment is None else self.segment
        options: dict[str, Any] = dict(segment=segment, causal=self.causal, pad=self.pad)
        if self.form == "mixture":
            return partial(combiner_mixture, q, k, pooling=self.pooling, empty=self.empty, **options), dict(v=v)
        if self.form == "fixed":
            pooled = {}
            if self.transform != "identity":
                pooled = dict(pool_q=q * q.shape[-1] ** -0.5, pool_k=k)
                if self.transform == "deepset":
                    pooled = dict(pool_q=self.deepset_q(pooled["pool_q"]), pool_k=self.deepset_k(k))
                pooled = {name: x.relu() for name, x in pooled.items()}
            return partial(combiner_fixed, q, k, pooling=self.pooling or "max", **pooled, **options), dict(v=v)
        if self.row_summary == "none":
            return partial(combiner_rowmajor, q, k, **options), dict(v=v)
        within = partial(combiner_rows, q, k, segment=segment, pad=self.pad)
        given = dict(v=v)
        if self.row_summary == "proj":
            keys = given["row_values"] = within(v)
        else:
            keys = within(k)
        if "proj" in self.row_summary:
            mixed = self.row_in(keys.transpose(1, 2).flatten(2)) + rows
            keys = self._by_heads(self.row_out(self.row_norm(mixed)))
        return partial(combiner_rowmajor, q, k, row_keys=keys, **options), given

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        attend, given = self._attention(x.flatten(2).transpose(1, 2), width)
        rows = self.proj(attend(**given).transpose(1, 2).flatten(2))
        return rows.transpose(1, 2).unflatten(2, (height, width))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head, directly and through summaries together:
        (B, heads, H, W), sums of 1."""
        (height, width), number = x.shape[-2:], place[0] * x.shape[-1] + place[1]
        with torch.inference_mode(False), torch.enable_grad():
            attend, given = self._attention(x.detach().clone().flatten(2).transpose(1, 2), width)
            # Outputs are linear in the values: one channel of them tells how much of each arrives
            values = torch.zeros_like(given["v"][..., :1]).requires_grad_()
            (weights,) = torch.autograd.grad(attend(v=values)[:, :, number].sum(), values)
        return weights.squeeze(-1).unflatten(-1, (height, width))
