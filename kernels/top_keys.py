"""Top keys: for every query the K keys of the highest score, where scores are sums of a few rows of a basis.

    s_ij = Σ_r c_ir basis_rj        over all r, or over those of the `kept` largest coefficients c_ir of the query
    index_i = the K keys j of the highest s_ij; of equal ones the first

The scores of all queries never exist together: a CPU makes those of one query at a time, from the rows that count, and
finds the K-th highest by halving its range, which takes a few vectorized counts instead of a sort. Elsewhere a few
queries at a time go through PyTorch's products and `topk`, which does not promise which of equal keys it takes. Nothing
is differentiable.

Legend: B images, H heads, S queries, R rows of the basis, N keys.

Source: the connectivity predictor of Sparsifiner, arXiv 2303.13755.
"""

import numpy as np
import torch
from torch import Tensor

from .checks import check_devices, check_floats, check_integer, check_tensors
from .dispatch import compiled, decompose, each, pick, slices
from .rows import add_rows

# scores that are computed together where a CPU's loops do not run: 32 MB in float32
BLOCK = 1 << 23


def top_keys(coefficients: Tensor, basis: Tensor, count: int, kept: int | None = None) -> Tensor:
    """The keys of the highest scores, see above.

    Args:
        coefficients: coefficients (B, H, S, R), of any floating-point dtype; float32 is what they are summed in.
        basis: (G, R, N) with G = 1 or B: for all images, or for each.
        count: number K of keys, 1..N.
        kept: number of the largest coefficients of a query that count, 1..R; None for all.

    Returns:
        (B, H, S, K), int32, in no order.

    Raises:
        ValueError: shapes or numbers that do not fit together.
        TypeError: tensors that are not of floating point.
    """
    check_tensors(coefficients=coefficients, basis=basis)
    if coefficients.ndim != 4 or 0 in coefficients.shape[1:2] or coefficients.shape[3] < 1:
        raise ValueError(f"coefficients must have shape (B, H, S, R), got {tuple(coefficients.shape)}")
    batch, rows = coefficients.shape[0], coefficients.shape[3]
    if basis.ndim != 3 or basis.shape[0] not in (1, batch) or basis.shape[1] != rows or basis.shape[2] < 1:
        raise ValueError(f"basis must have shape (1 or {batch}, {rows}, N), got {tuple(basis.shape)}")
    check_floats(coefficients=coefficients, basis=basis)
    check_devices(coefficients=coefficients, basis=basis)
    check_integer(count, "count", 1, basis.shape[2])
    if kept is not None:
        check_integer(kept, "kept", 1, rows)
    return top_keys_op(coefficients, basis, count, kept)


def largest(coefficients: Tensor, kept: int | None) -> Tensor:
    """The coefficients (..., R), with 0 in place of all but the `kept` largest of each query."""
    if kept is None or kept == coefficients.shape[-1]:
        return coefficients
    values, places = coefficients.topk(kept, sorted=False)
    return torch.zeros_like(coefficients).scatter(-1, places, values)


def top_keys_reference(coefficients: Tensor, basis: Tensor, count: int, kept: int | None) -> Tensor:
    weights, rows = largest(coefficients, kept).float(), basis.float().unsqueeze(1)
    batch, heads, queries, _ = weights.shape
    index = torch.empty(batch, heads, queries, count, dtype=torch.int32, device=weights.device)
    for part in slices(0, queries, max(1, BLOCK // (max(1, batch * heads) * basis.shape[2]))):
        index[:, :, part] = (weights[:, :, part] @ rows).topk(count, sorted=False).indices
    return index


@compiled
def _number_from(x, threshold):
    """How many entries are at least the threshold."""
    number = np.int32(0)
    for i in range(x.shape[0]):
        number += np.int32(x[i] >= threshold)
    return number


@compiled(fastmath={"nnan", "nsz", "reassoc"})  # for vector instructions; of NaN any number will do
def _range(x):
    """The lowest and the highest entry."""
    low = high = x[0]
    for i in range(x.shape[0]):
        low = x[i] if x[i] < low else low
        high = x[i] if x[i] > high else high
    return low, high


@compiled
def _take_from(x, threshold, places):
    """Write the places of the entries that are at least the threshold; return their number. There are no branches,
    which nobody could foresee: one more place is written than counts."""
    taken = 0
    for i in range(x.shape[0]):
        places[taken] = i
        taken += x[i] >= threshold
    return taken


@compiled
def _take_top(x, count, places, index):
    """Write the places of the `count` highest entries; of equal ones the first."""
    low, high = _range(x)
    below, above = x.shape[0], _number_from(x, high)  # how many are >= low, count or more, and >= high, fewer
    if above >= count:
        low, below, above = high, above, 0
    for step in range(60):
        if below == count or not low < high:
            break
        share = np.float32(0.5)
        if step % 2 == 0:  # as if they lay evenly
            share = np.float32(below - count) / np.float32(below - above)
            share = max(np.float32(0.02), min(np.float32(0.98), share))
        middle = low + share * (high - low)
        if not low < middle < high:
            break
        number = _number_from(x, middle)
        if number >= count:
            low, below = middle, number
        else:
            high, above = middle, number
    if below == count:
        above = _take_from(x, low, places)
    elif above:
        above = _take_from(x, high, places)
    taken = 0
    for i in range(min(above, count)):
        index[taken] = places[i]
        taken += 1
    for i in range(x.shape[0]):  # equal ones, or NaN, which nothing is equal to
        if taken == count:
            break
        if low <= x[i] and not (above and x[i] >= high):
            index[taken] = i
            taken += 1
    for i in range(taken, count):
        index[i] = i


@compiled
def _find_top(coefficients_SR, basis_RN, kept, index_SK):
    """The top keys of the queries of one head."""
    rows, values = np.empty(kept, np.int32), np.empty(kept, np.float32)
    score, places = np.empty(basis_RN.shape[1], np.float32), np.empty(max(basis_RN.shape) + 1, np.int32)
    for s in range(coefficients_SR.shape[0]):
        _take_top(coefficients_SR[s], kept, places, rows)
        for r in range(kept):
            values[r] = coefficients_SR[s, rows[r]]
        score[:] = 0
        add_rows(values, basis_RN, rows.view(np.uint32), kept, score)
        _take_top(score, index_SK.shape[1], places, index_SK[s])


def _top_keys_cpu(coefficients: Tensor, basis: Tensor, count: int, kept: int | None) -> Tensor:
    weights, rows = coefficients.detach().float().contiguous().numpy(), basis.detach().float().contiguous().numpy()
    batch, heads, queries, number = weights.shape
    index = torch.empty(batch, heads, queries, count, dtype=torch.int32)
    found = index.numpy()

    def work(place: tuple[int, int]) -> None:
        image, head = place
        _find_top(weights[image, head], rows[image % len(rows)], kept or number, found[image, head])

    each(work, [(image, head) for image in range(batch) for head in range(heads)])
    return index


@torch.library.custom_op("attlas::top_keys", mutates_args=())
def top_keys_op(coefficients: Tensor, basis: Tensor, count: int, kept: int | None) -> Tensor:
    """index (B, H, S, K)."""
    run = pick(coefficients, reference=top_keys_reference, triton=top_keys_reference, cpu=_top_keys_cpu)
    return run(coefficients, basis, count, kept)


def _whole(coefficients: Tensor, basis: Tensor, count: int, kept: int | None) -> Tensor:
    """The reference without blocks, whose number an export may not know."""
    scores = largest(coefficients, kept).float() @ basis.float().unsqueeze(1)
    return scores.topk(count, sorted=False).indices.int()


@top_keys_op.register_fake
def _(coefficients, basis, count, kept):
    return coefficients.new_empty(*coefficients.shape[:3], count, dtype=torch.int32)


decompose(top_keys_op, _whole)
