"""Combiner: every query attends to some keys directly, and to all others through summaries of them, in one softmax.

The L places are read row by row as a grid of n rows of w (the segments of a sequence, or the rows of a map). A span Ω
of places is summarized by a key κ and a value ν, which all queries share:

    κ = max of its keys, by element;  θ = max of its queries;  ν = Σ_{j in Ω} softmax_j(θ · k_j) v_j

so that a query q attends to Ω with the logit q · κ, and receives ν. All queries are over √D first. Which keys are
direct, and which spans there are, tells the four forms apart:

- `combiner_fixed`: own row, and each row as one span; causal: own row up to the query, and the rows before.
  O(L (w + n)).
- `combiner_logsparse`, causal: the place itself, and the blocks of 2^l places that the bits of its number cut all
  places before it into. O(L log L).
- `combiner_rowmajor`: own row, and of each row what its place in the column of the query has made of the whole row by
  attention within the row; causal: own row up to the query, and the rows before. O(L (w + n)).
- `combiner_mixture`: own row and own column, of every column the spans above and below the row of the query, of every
  row those left and right of its column. Causal: own row up to the query, own column above it, the spans above in
  other columns, and the spans left and right in the rows before, so that what is above counts twice. O(L (w + n)).

Nothing of L x L exists. These are PyTorch's products, without an operator of their own: what autograd keeps of them is
O(L (w + n)) numbers a head at most. Sums are in float32 at least, and without autocast.

A length that w does not divide is filled up with places that nobody sees. Of a row that is cut short,
`combiner_rowmajor` shows its last place to the columns beyond.

Source: "Combiner: Full Attention Transformer with Sparse Computation Cost", arXiv 2107.05768, and its release in
google-research (combiner/jax/model/layer.py, combiner/tf/approx_attention.py). The release's `combiner_logsparse` lacks
the highest level where L = 2^m + 1. Filling up is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_choice, check_flags, check_integer, check_one_dtype, sum_dtype
from .dispatch import decompose, without_autocast

POOLINGS = ("max", "sum", "mean")
EMPTY = ("masked", "mean")


def combiner_fixed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment: int,
    causal: bool = False,
    pooling: str = "max",
    pool_q: Tensor | None = None,
    pool_k: Tensor | None = None,
    pad: bool = True,
) -> Tensor:
    """Attention to the own row and to the summaries of rows, see above; differentiable.

    Args:
        q: queries (B, heads, L, D).
        k: keys, of the same shape.
        v: values (B, heads, L, Dv). q, k and v have one dtype.
        segment: places w of a row; more than L count as L.
        causal: whether a place sees only itself and those before it. Otherwise it sees the summaries of all rows,
            its own included.
        pooling: "max", "sum" or "mean" of the queries and keys of a row.
        pool_q: what is pooled in place of q / √D, (B, heads, L, D): something learned of it.
        pool_k: what is pooled in place of k, of the same shape.
        pad: whether L need not be divisible by `segment`.

    Returns:
        (B, heads, L, Dv), in the dtype of v.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_flags(causal=causal, pad=pad)
    check_choice(pooling, "pooling", POOLINGS)
    given = {name: x for name, x in (("pool_q", pool_q), ("pool_k", pool_k)) if x is not None}
    grid = _Grid(q, k, v, segment, pad, **given)
    with without_autocast(q):
        rows, columns = grid.sides
        q_rows, k_rows, v_rows = grid.q, grid.k, grid.v
        to_pool = [
            grid.on_grid(given[name]) if name in given else x for name, x in (("pool_q", q_rows), ("pool_k", k_rows))
        ]
        theta, kappa = (_pooled(x, pooling, grid.real) for x in to_pool)
        within = None if grid.real is None else grid.real.unsqueeze(1)
        nu = _attention(theta.unsqueeze(-2), k_rows, v_rows, within).squeeze(-2)
        if not grid.free and columns < rows and 2 * columns < q.shape[3] + v.shape[3]:
            # Logits are fewer than half the numbers of keys and values that each row had of its own
            row_mask, summary_mask = within, None
            if causal:
                row_mask, summary_mask = _before(columns, q.device, itself=True), _before(rows, q.device)
            summaries = kappa.unsqueeze(2), nu.unsqueeze(2), summary_mask
            return grid.sequence(_two_ways(q_rows, (k_rows, v_rows, row_mask), summaries))
        keys, values = (
            torch.cat([x, summary.unsqueeze(2).expand(-1, -1, rows, -1, -1)], dim=3)
            for x, summary in ((k_rows, kappa), (v_rows, nu))
        )
        mask = None
        if causal:
            own = _before(columns, q.device, itself=True).expand(rows, -1, -1)
            mask = torch.cat([own, _before(rows, q.device).unsqueeze(1).expand(-1, columns, -1)], dim=2)
        elif within is not None:
            mask = torch.cat([within, within.new_ones(rows, 1, rows)], dim=2).expand(-1, columns, -1)
        return grid.sequence(_attention(q_rows, keys, values, mask))


def combiner_logsparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention to the place itself and to blocks of 2^l places before it, see above; differentiable.

    Args:
        q: queries (B, heads, L, D), of any length L.
        k: keys, of the same shape.
        v: values (B, heads, L, Dv). q, k and v have one dtype.

    Returns:
        (B, heads, L, Dv), in the dtype of v.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
    """
    grid = _Grid(q, k, v, 1, True)
    with without_autocast(q):
        q, k, v = (x.flatten(2, 3) for x in (grid.q, grid.k, grid.v))
        length = q.shape[2]
        logits, summaries = [(q * k).sum(-1)], []
        for level in range((length - 1).bit_length()):
            size = 1 << level
            # Pairs of blocks of which the second has a place at least: it looks at the first
            pairs = (length - size + 2 * size - 1) // (2 * size)
            firsts, looking = _halves(k, pairs, size)[0], _halves(q, pairs, size)[1]
            values = _halves(v, pairs, size)[0]
            if level:
                theta = _halves(q, pairs, size)[0].amax(3, keepdim=True)
                kappa, nu = firsts.amax(3, keepdim=True), _attention(theta, firsts, values)
            else:
                kappa, nu = firsts, values
            seen = (looking * kappa).sum(-1, keepdim=True)
            logits.append(_whole(seen, length, -torch.inf).squeeze(-1))
            summaries.append((nu, pairs, size))
        weights = torch.stack(logits, dim=-1).softmax(-1)
        out = weights[..., :1] * v
        for level, (nu, pairs, size) in enumerate(summaries):
            shares = _halves(weights[..., level + 1, None], pairs, size)[1]
            out = out + _whole(shares * nu, length, 0.0)
        return grid.sequence(out.unsqueeze(3))


def combiner_rows(q: Tensor, k: Tensor, v: Tensor, segment: int, pad: bool = True) -> Tensor:
    """Attention within each row, which `combiner_rowmajor` shows to the other rows; differentiable.

    Args, Returns and Raises are those of `combiner_rowmajor`.
    """
    check_flags(pad=pad)
    grid = _Grid(q, k, v, segment, pad)
    with without_autocast(q):
        return grid.sequence(grid.within_rows(grid.v))


def combiner_rowmajor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment: int,
    causal: bool = False,
    row_keys: Tensor | None = None,
    row_values: Tensor | None = None,
    pad: bool = True,
) -> Tensor:
    """Attention to the own row, and through the own column to what other rows have made of themselves, see above;
    differentiable.

    Args:
        q: queries (B, heads, L, D).
        k: keys, of the same shape.
        v: values (B, heads, L, Dv). q, k and v have one dtype.
        segment: places w of a row; more than L count as L.
        causal: whether a place sees only itself and those before it. Otherwise it also sees its own row twice.
        row_keys: keys by which other rows see a place, (B, heads, L, D); k by default. The release has k, the keys
            mixed as the values are (`combiner_rows(q, k, k, segment)`), or what is learned of either.
        row_values: what they then receive, (B, heads, L, Dv); by default `combiner_rows(q, k, v, segment)`.
        pad: whether L need not be divisible by `segment`.

    Returns:
        (B, heads, L, Dv), in the dtype of v.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_flags(causal=causal, pad=pad)
    given = {name: x for name, x in (("row_keys", row_keys), ("row_values", row_values)) if x is not None}
    grid = _Grid(q, k, v, segment, pad, **given)
    with without_autocast(q):
        rows, columns = grid.sides
        keys = grid.on_grid(row_keys) if row_keys is not None else grid.k
        values = grid.on_grid(row_values) if row_values is not None else grid.within_rows(grid.v)
        row_mask = column_mask = None
        if causal:
            row_mask, column_mask = _before(columns, q.device, itself=True), _before(rows, q.device)
        elif grid.real is not None:
            row_mask = grid.real.unsqueeze(1)
            keys, values = grid.last_repeated(keys), grid.last_repeated(values)
        return grid.sequence(
            _two_ways(grid.q, (grid.k, grid.v, row_mask), (keys.transpose(2, 3), values.transpose(2, 3), column_mask))
        )


def combiner_mixture(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment: int,
    causal: bool = False,
    pooling: str | None = None,
    empty: str = "masked",
    pad: bool = True,
) -> Tensor:
    """Attention to the own row and column, and to spans of the others, see above; differentiable.

    Args:
        q: queries (B, heads, L, D).
        k: keys, of the same shape.
        v: values (B, heads, L, Dv). q, k and v have one dtype.
        segment: places w of a row; more than L count as L.
        causal: whether a place sees only itself and those before it.
        pooling: "max", "sum" or "mean" of the queries and keys of a span; None for what the release has, "max" if
            causal, else "sum".
        empty: what a span without places is, at the border: "masked", or "mean" as in the release's form that is not
            causal, a slip: a key of zeros, and the mean of the values of the whole column or row.
        pad: whether L need not be divisible by `segment`.

    Returns:
        (B, heads, L, Dv), in the dtype of v.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_flags(causal=causal, pad=pad)
    if pooling is not None:
        check_choice(pooling, "pooling", POOLINGS)
    check_choice(empty, "empty", EMPTY)
    if causal and empty != "masked":
        raise ValueError(f"empty must be 'masked' where causal is set, got {empty!r}")
    pooling = pooling or ("max" if causal else "sum")
    grid = _Grid(q, k, v, segment, pad)
    with without_autocast(q):
        rows, columns = grid.sides
        q_rows, k_rows, v_rows = grid.q, grid.k, grid.v
        q_columns, k_columns, v_columns = (x.transpose(2, 3) for x in (q_rows, k_rows, v_rows))
        real = None if causal else grid.real  # what is filled up lies behind all others
        turned = None if real is None else real.T

        def spans(
            of: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, backward: bool
        ) -> tuple[Tensor, Tensor, Tensor]:
            """Keys, values and existence (lines, length) of the spans up to each place of a line, turned to the lines
            across: those of columns lie in rows then, and those of rows in columns."""
            found = _spans(*of, mask, pooling, empty, backward)
            return found[0].transpose(2, 3), found[1].transpose(2, 3), found[2].T

        by_columns, by_rows = (q_columns, k_columns, v_columns), (q_rows, k_rows, v_rows)
        above, left = spans(by_columns, turned, False), spans(by_rows, real, False)
        right = spans(by_rows, real, True)
        others = [above] if causal else [above, spans(by_columns, turned, True)]
        row_masks = [exists.unsqueeze(1).expand(-1, columns, -1) for *_, exists in others]
        column_masks = [exists.unsqueeze(1).expand(-1, rows, -1) for *_, exists in (left, right)]
        if causal:
            own = _before(columns, q.device, itself=True).expand(rows, -1, -1)
            row_masks = [own, row_masks[0] & ~torch.eye(columns, dtype=torch.bool, device=q.device)]
            earlier = _before(rows, q.device)
            column_masks = [earlier.expand(columns, -1, -1), *(mask & earlier for mask in column_masks)]
        else:
            everywhere = row_masks[0].new_ones(rows, columns)
            row_masks.insert(0, (everywhere if real is None else real).unsqueeze(1).expand(-1, columns, -1))
            column_masks.insert(0, (everywhere.T if turned is None else turned).unsqueeze(1).expand(-1, rows, -1))
        by_row, by_column = (
            (torch.cat([x[0] for x in found], dim=3), torch.cat([x[1] for x in found], dim=3), torch.cat(masks, dim=2))
            for found, masks in (
                ([(k_rows, v_rows), *others], row_masks),
                ([(k_columns, v_columns), left, right], column_masks),
            )
        )
        return grid.sequence(_two_ways(q_rows, by_row, by_column))


# --- parts -----------------------------------------------------------------------------------------------------------


class _Grid:
    """q / √D, k and v as rows (B, heads, n, w, D) in the dtype of sums, and back.

    `real` (n, w) tells the places from those that fill up the last row, where there are such; else it is None. `free`
    tells whether an export leaves sizes open.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, segment: int, pad: bool, **others: Tensor):
        check_one_dtype(q=q, k=k, v=v, **others)
        if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3] or 0 in q.shape[1:]:
            shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
            raise ValueError(
                f"q, k and v must have shapes (B, heads, L, D), the same, and (B, heads, L, Dv), got {shapes}"
            )
        for name, x in others.items():
            wanted = v.shape if name == "row_values" else q.shape
            if x.shape != wanted:
                raise ValueError(f"{name} must have shape {tuple(wanted)}, got {tuple(x.shape)}")
        if not isinstance(segment, torch.SymInt):
            check_integer(segment, "segment")
        length = q.shape[2]
        if not pad and length % segment:
            raise ValueError(f"segment must divide the {length} places of q unless pad is set, got {segment}")
        self.length, self.dtype, self.wide = length, v.dtype, sum_dtype(q)
        self.free = isinstance(segment, torch.SymInt) or isinstance(length, torch.SymInt)
        self.columns = segment if self.free else min(segment, length)
        self.missing = -length % self.columns
        self.sides = (length + self.missing) // self.columns, self.columns
        self.q, self.k, self.v = self.on_grid(q) * q.shape[3] ** -0.5, self.on_grid(k), self.on_grid(v)
        places = torch.arange(length + self.missing, device=q.device).view(self.sides)
        self.places, self.real = places, places < length if self.missing else None

    def on_grid(self, x: Tensor) -> Tensor:
        x = x.to(self.wide)
        return (F.pad(x, (0, 0, 0, self.missing)) if self.missing else x).unflatten(2, self.sides)

    def sequence(self, x: Tensor) -> Tensor:
        """Rows back as (B, heads, L, Dv), in the dtype of v."""
        return x.flatten(2, 3)[:, :, : self.length].to(self.dtype)

    def within_rows(self, values: Tensor) -> Tensor:
        mask = None if self.real is None else self.real.unsqueeze(1).expand(-1, self.columns, -1)
        return _attention(self.q, self.k, values, mask)

    def last_repeated(self, x: Tensor) -> Tensor:
        """The last place in all that fill up its row."""
        return x.flatten(2, 3)[:, :, self.places.clamp_max(self.length - 1).flatten()].view(x.shape)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q kᵀ) v of lines (B, heads, lines, length, D), with a mask (lines, of queries, of keys)."""
    shape, (q, k, v) = q.shape[:2], (x.flatten(0, 1) for x in (q, k, v))
    if mask is not None:  # with three axes PyTorch would write out all weights, and choices are slower than terms
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf).unsqueeze(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=1.0).unflatten(0, shape)


def _two_ways(q: Tensor, by_row: tuple, by_column: tuple) -> Tensor:
    """One softmax over two kinds of keys: those of the row of a query, and those of its column.

    Args:
        q: queries (B, heads, n, w, D).
        by_row: keys (B, heads, n, x, D) and values of each row, and a mask (n or 1, w, x), or None.
        by_column: keys (B, heads, w or 1, y, D) and values of each column, and a mask (w or 1, n, y), or None.
    """
    turned, weighted = q.transpose(2, 3), []
    for queries, (keys, values, mask) in ((q, by_row), (turned, by_column)):
        logits = queries @ keys.mT
        if mask is not None:
            logits.masked_fill_(~mask, -torch.inf)
        weighted.append((logits, values))
    (of_row, row_values), (of_column, column_values) = weighted
    # Exponentials in place of the logits: nothing else of this size is kept
    most = torch.maximum(of_row.detach().amax(4), of_column.detach().amax(4).transpose(2, 3))
    of_row = of_row.sub_(most.unsqueeze(4)).exp_()
    of_column = of_column.sub_(most.transpose(2, 3).unsqueeze(4)).exp_()
    sums = of_row @ row_values + (of_column @ column_values).transpose(2, 3)
    return sums / (of_row.sum(4) + of_column.sum(4).transpose(2, 3)).unsqueeze(4)


def _before(count: int, device: torch.device, itself: bool = False) -> Tensor:
    """(count, count): whether the second number is before the first, or the same."""
    places = torch.arange(count, device=device)
    return places[:, None] >= places if itself else places[:, None] > places


def _pooled(x: Tensor, pooling: str, real: Tensor | None) -> Tensor:
    """The maximum, sum or mean of lines (B, heads, lines, length, D), (B, heads, lines, D); `real` (lines, length)
    tells the places that count."""
    if real is not None:
        x = x.masked_fill(~real.unsqueeze(-1), -torch.inf if pooling == "max" else 0)
    if pooling == "max":
        return x.amax(3)
    count = x.shape[3] if real is None else real.sum(1, keepdim=True)
    return x.sum(3) / count if pooling == "mean" else x.sum(3)


def _running(x: Tensor, pooling: str, real: Tensor | None, count: Tensor) -> Tensor:
    """`_pooled` of all places of a line up to each; 0 where none of these counts."""
    if real is not None:
        x = x.masked_fill(~real.unsqueeze(-1), -torch.inf if pooling == "max" else 0)
    if pooling == "max":
        x = x.cummax(3).values
        return x if real is None else x.masked_fill((count == 0).unsqueeze(-1), 0)
    x = x.cumsum(3)
    return x / count.clamp_min(1).unsqueeze(-1) if pooling == "mean" else x


def _spans(
    q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, pooling: str, empty: str, backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The span before each place of a line, or behind it.

    Args:
        q, k, v: lines (B, heads, lines, length, D).
        real: places that count (lines, length), or None for all.
        pooling, empty: as of `combiner_mixture`.
        backward: whether spans lie behind their places.

    Returns:
        keys κ and values ν of the spans (B, heads, lines, length, D), and which exist (lines, length).
    """
    if backward:
        q, k, v = (x.flip(3) for x in (q, k, v))
        real = None if real is None else real.flip(1)
    lines, length = q.shape[2:4]
    ones = torch.ones(lines, length, dtype=torch.bool, device=q.device)
    count = (ones if real is None else real).cumsum(1)
    theta, kappa = (_running(x, pooling, real, count) for x in (q, k))
    if real is None:
        nu = _attention(theta, k, v, causal=True)
    else:
        mask = _before(length, q.device, itself=True) & real.unsqueeze(1)
        nu = _attention(theta, k, v, mask | (count == 0).unsqueeze(2))  # a row of nothing would be NaN
    kappa, nu = (F.pad(x, (0, 0, 1, 0))[:, :, :, :-1] for x in (kappa, nu))
    exists = F.pad(count, (1, 0))[:, :-1] > 0
    if empty == "mean":
        kappa = kappa.masked_fill(~exists.unsqueeze(-1), 0)
        nu = nu.where(exists.unsqueeze(-1), _pooled(v, "mean", real).unsqueeze(3))
        exists = ones
    if backward:
        kappa, nu, exists = kappa.flip(3), nu.flip(3), exists.flip(1)
    return kappa, nu, exists


def _halves(x: Tensor, pairs: int, size: int) -> tuple[Tensor, Tensor]:
    """The first and the second of pairs of blocks: two of (B, heads, pairs, size, D), of x (B, heads, L, D)."""
    missing = pairs * 2 * size - x.shape[2]
    x = F.pad(x, (0, 0, 0, missing)) if missing > 0 else x[:, :, : pairs * 2 * size]
    first, second = x.unflatten(2, (pairs, 2, size)).unbind(3)
    return first, second


def _whole(second: Tensor, length: int, fill: float) -> Tensor:
    """The inverse of `_halves`, (B, heads, length, D), where all else is `fill`."""
    x = torch.stack([torch.full_like(second, fill), second], dim=3).flatten(2, 4)
    missing = length - x.shape[2]
    return F.pad(x, (0, 0, 0, missing), value=fill) if missing > 0 else x[:, :, :length]


def _cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Running maxima by steps of 1, 2, 4, ...: ONNX has none. Nobody reads where they are."""
    x, step = x.movedim(dim, -1), 1
    while step < x.shape[-1]:
        x = torch.cat([x[..., :step], torch.maximum(x[..., step:], x[..., :-step])], dim=-1)
        step *= 2
    x = x.movedim(-1, dim)
    return x, torch.zeros_like(x, dtype=torch.int64)


decompose(torch.ops.aten.cummax.default, _cummax)
