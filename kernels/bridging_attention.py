"""Bridging attention: every query attends to K key points, with a bias looked up by how far away a key point lies.

    out[b, i, h] = Σ_j softmax_j(scale q[b, i, h]·k[b, j, h] + bias[b, h, i, j]) v[b, j, h]
    bias[b, h, i, j] = log max(table[h] at ((key_position_j - query_position_i) step), 1e-6)

`table[h]` is a map over differences of positions; its middle stands for no difference. It is read by bilinear
interpolation, and beyond its border as at the border. Gradients reach the positions through the interpolation; they are
0 where a difference lies on the border or beyond it. A value below 1e-6 passes no gradient.

The bias, the logits and the weights have B N K heads elements. Memory never holds them: a CPU computes them for a few
queries at a time in buffers that fit a cache, Triton in registers. The backward computes them again.

Gradients, for g = ∂/∂out, P the weights, t the value read from the table, δ_i = Σ_j P_ij (g_i·v_j):

    S_ij = P_ij (g_i·v_j - δ_i);  ∂q_i = scale Σ_j S_ij k_j;  ∂k_j = scale Σ_i S_ij q_i;  ∂v_j = Σ_i P_ij g_i
    ∂t_ij = S_ij / t_ij, which goes to the four cells of the table and, by the slopes between them, to both positions

Legend: B images, N queries, K key points, D channels of q and k, C channels of v.

Source: shared location embedding and attention of BVR, RelationNet++, arXiv 2010.15831 (microsoft/RelationNet2).
"""

import functools

import numpy as np
import torch
from torch import Tensor

from .checks import COORDINATES, check_devices, check_number, check_one_dtype, check_points, check_tensors, sum_dtype
from .dispatch import compiled, decompose, each, pick, slices, tl, triton
from .tiles import dot, load_rows, operands, store_rows, tile_of

# The least value of the table that counts.
LEAST = 1e-6


def bridging_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    step: float,
    scale: float | None = None,
) -> Tensor:
    """Attention to key points with a bias by location; differentiable in all tensors. Half types are summed in float32.

    Args:
        q: queries (B, N, heads, D), of any floating-point dtype.
        k: keys (B, K, heads, D), in the same dtype.
        v: values (B, K, heads, C), in the same dtype.
        table: map (heads, Y, X) over differences of positions, float32 or float64; Y and X are 2 at least.
        query_positions: positions (B, N, 2) of the queries, x before y, in the dtype of the table.
        key_positions: positions (B, K, 2) of the key points, in the dtype of the table.
        step: number of cells of the table for a difference of 1, above 0.
        scale: factor of the products q·k, at least 0; D^-0.5 by default.

    Returns:
        (B, N, heads, C), in the dtype of v.

    Raises:
        ValueError: shapes that do not fit together; positions that are not finite (on a CPU).
        TypeError: dtypes that differ or are not floating point.
    """
    check_tensors(q=q, k=k, v=v)
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k and v must have shape (B, N or K, heads, channels), got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"q and k must agree in images, heads and channels, got {shapes}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k and v must have one shape but for their last axis, got {shapes}")
    if 0 in k.shape or 0 in q.shape or 0 in v.shape:
        raise ValueError(f"q, k and v must have no axis of length 0, got {shapes}")
    check_one_dtype(q=q, k=k, v=v)
    check_location(table, query_positions, key_positions, step)
    check_devices(q=q, table=table)
    if len(table) != q.shape[2]:
        raise ValueError(f"table must have the {q.shape[2]} heads of q on its axis 0, got {len(table)}")
    for name, positions, rows in (("query_positions", query_positions, q), ("key_positions", key_positions, k)):
        if positions.shape[:2] != rows.shape[:2]:
            raise ValueError(
                f"{name} must have shape (B, N or K, 2) for the rows {tuple(rows.shape[:2])}, got "
                f"{tuple(positions.shape)}"
            )
    if scale is not None:
        check_number(scale, "scale")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return bridging_attention_op(q, k, v, table, query_positions, key_positions, float(step), scale)[0]


def check_location(table: Tensor, query_positions: Tensor, key_positions: Tensor, step: float) -> None:
    """Raise unless these are a table, positions and a step, as `bridging_attention` takes them."""
    check_tensors(table=table)
    if table.dtype not in COORDINATES:
        raise TypeError(f"table must be float32 or float64 (the logarithm needs the digits), got {table.dtype}")
    if table.ndim != 3 or 0 in table.shape or min(table.shape[1:]) < 2:
        raise ValueError(f"table must have shape (heads, Y, X) with Y and X of 2 at least, got {tuple(table.shape)}")
    for name, positions in dict(query_positions=query_positions, key_positions=key_positions).items():
        check_points(positions, name, dimensions=2, any_magnitude=True)
        if positions.dtype != table.dtype:
            raise TypeError(f"{name} must be in the dtype of table, {table.dtype}, got {positions.dtype}")
        check_devices(table=table, **{name: positions})
    check_number(step, "step", positive=True)


def location_bias(table: Tensor, query_positions: Tensor, key_positions: Tensor, step: float) -> Tensor:
    """The bias alone, (B, heads, N, K), for pictures of it. Arguments and errors are those of `bridging_attention`."""
    check_location(table, query_positions, key_positions, step)
    return _read(table, query_positions, key_positions, step)[0].clamp(min=LEAST).log()


def _read(table: Tensor, query_positions: Tensor, key_positions: Tensor, step: float):
    """Values (B, heads, N, K) of the table, and their slopes along x and y.

    And the places that were read, (B, N, K, 4), as indices into a flat map, with the weights of each.
    """
    difference = (key_positions.unsqueeze(1) - query_positions.unsqueeze(2)) * step
    width = table.shape[2]
    (x, right, in_x), (y, down, in_y) = (_cell(difference[..., a], table.shape[2 - a]) for a in (0, 1))
    pair = torch.arange(2, device=table.device)
    place = (y * width + x).unsqueeze(-1) + (pair.unsqueeze(1) * width + pair).flatten()
    left, up = 1 - right, 1 - down
    weights = torch.stack([up * left, up * right, down * left, down * right], -1)
    corners = table.flatten(1)[:, place].transpose(0, 1)  # B heads N K 4
    value = (corners * weights.unsqueeze(1)).sum(-1)
    (a, b, c, d), (left, right, up, down) = corners.unbind(-1), (x.unsqueeze(1) for x in (left, right, up, down))
    slope_x = ((b - a) * up + (d - c) * down) * in_x.unsqueeze(1)
    slope_y = ((c - a) * left + (d - b) * right) * in_y.unsqueeze(1)
    return value, slope_x, slope_y, place, weights


def _cell(difference: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cell before a place on an axis of the table, how far the place lies behind it, and whether it lies inside."""
    at = difference + (size - 1) / 2
    inside = (at > 0) & (at < size - 1)
    at = at.clamp(0, size - 1)
    first = at.floor().clamp(max=size - 2)
    return first.long(), at - first, inside


def _wide(q: Tensor, table: Tensor) -> torch.dtype:
    return torch.promote_types(sum_dtype(q), table.dtype)


def bridging_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    step: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out, with all weights in memory, and lse (B, N, heads)."""
    wide = _wide(q, table)
    q_BHND, k_BHKD, v_BHKC = (x.to(wide).transpose(1, 2) for x in (q, k, v))
    table, query_positions, key_positions = (x.to(wide) for x in (table, query_positions, key_positions))
    bias = _read(table, query_positions, key_positions, step)[0].clamp(min=LEAST).log()
    logits = (q_BHND * scale) @ k_BHKD.mT + bias
    out = torch.softmax(logits, -1) @ v_BHKC
    return out.transpose(1, 2).to(v.dtype).contiguous(), logits.logsumexp(-1).transpose(1, 2).contiguous()


def bridging_attention_backward_reference(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    out: Tensor,
    lse: Tensor,
    step: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the table, and the positions of queries and keys."""
    wide = _wide(q, table)
    g, q_BHND, k_BHKD, v_BHKC = (x.to(wide).transpose(1, 2) for x in (grad, q, k, v))
    positions = query_positions.to(wide), key_positions.to(wide)
    value, slope_x, slope_y, place, weights = _read(table.to(wide), *positions, step)
    weight = torch.softmax((q_BHND * scale) @ k_BHKD.mT + value.clamp(min=LEAST).log(), -1)
    dv = weight.mT @ g
    product = g @ v_BHKC.mT
    logits_grad = weight * (product - (weight * product).sum(-1, keepdim=True))
    dq, dk = (logits_grad @ k_BHKD) * scale, (logits_grad.mT @ q_BHND) * scale
    value_grad = (logits_grad / value).where(~(value < LEAST), 0)
    dtable = torch.zeros(table.shape, dtype=wide, device=table.device).flatten(1)
    spread = value_grad.unsqueeze(-1) * weights.unsqueeze(1)
    dtable.index_add_(1, place.flatten(), spread.transpose(0, 1).flatten(1))
    difference_grad = torch.stack([value_grad * slope_x, value_grad * slope_y], -1).sum(1) * step
    moved = -difference_grad.sum(2), difference_grad.sum(1)
    attention = (x.transpose(1, 2).to(q.dtype).contiguous() for x in (dq, dk, dv))
    return *attention, *(x.to(table.dtype) for x in (dtable.view(table.shape), *moved))  # type: ignore[return-value]


# The CPU's path: products of matrices by PyTorch and the lookup by a loop, for as many queries at a time as have
# weights that fit a cache.

# weights that are computed together: 512 kB in float32
BLOCK = 1 << 17


def _blocks(q: Tensor, keys: int) -> list[tuple[int, slice]]:
    """An image and some of its queries, for all images and queries."""
    batch, count, heads, _ = q.shape
    rows = max(16, BLOCK // (heads * keys))
    return [(b, part) for b in range(batch) for part in slices(0, count, rows)]


@compiled
def _place(key, query, step, half):
    """`_cell` of one difference; the axis of the table is 2 `half` + 1 long.

    Positions that are not finite, which a traced graph does not check, lie at 0.
    """
    at, last = (key - query) * step + half, half + half
    inside = at > 0 and at < last
    if not at > 0:
        at = half - half
    if at > last:
        at = last
    first = min(int(at), int(last) - 1)
    return first, at - first, inside


@compiled
def _corners(table, x, right, y, down):
    """The four cells around a place, rows of all heads, and their weights."""
    right, down = table.dtype.type(right), table.dtype.type(down)
    left, up = 1 - right, 1 - down
    left, up = table.dtype.type(left), table.dtype.type(up)
    cells = table[y, x], table[y, x + 1], table[y + 1, x], table[y + 1, x + 1]
    return cells, (up * left, up * right, down * left, down * right)


@compiled(fastmath={"contract"})
def _look_up(table, queries, keys, step, least, values):
    """values (n, K, heads) of the table (Y, X, heads), the least ones raised."""
    rows, columns, heads = table.shape
    middle_x, middle_y = table.dtype.type((columns - 1) / 2), table.dtype.type((rows - 1) / 2)
    for i in range(len(queries)):
        for j in range(len(keys)):
            x, right, _ = _place(keys[j, 0], queries[i, 0], step, middle_x)
            y, down, _ = _place(keys[j, 1], queries[i, 1], step, middle_y)
            (a, b, c, d), (of_a, of_b, of_c, of_d) = _corners(table, x, right, y, down)
            row = values[i, j]
            for h in range(heads):
                value = a[h] * of_a + b[h] * of_b + c[h] * of_c + d[h] * of_d
                row[h] = least if value < least else value


@compiled(fastmath={"contract", "reassoc"})
def _spread(table, queries, keys, step, least, logits_grad, table_grad, queries_grad, keys_grad):
    """Take the gradients of the logits (n, K, heads) to the table and to the positions."""
    rows, columns, heads = table.shape
    middle_x, middle_y = table.dtype.type((columns - 1) / 2), table.dtype.type((rows - 1) / 2)
    zero = table.dtype.type(0)
    for i in range(len(queries)):
        for j in range(len(keys)):
            x, right, in_x = _place(keys[j, 0], queries[i, 0], step, middle_x)
            y, down, in_y = _place(keys[j, 1], queries[i, 1], step, middle_y)
            (a, b, c, d), (of_a, of_b, of_c, of_d) = _corners(table, x, right, y, down)
            (to_a, to_b, to_c, to_d), _ = _corners(table_grad, x, right, y, down)
            left, right, up, down = of_a + of_c, of_b + of_d, of_a + of_b, of_c + of_d
            row, along_x, along_y = logits_grad[i, j], zero, zero
            for h in range(heads):
                value = a[h] * of_a + b[h] * of_b + c[h] * of_c + d[h] * of_d
                grad = zero if value < least else row[h] / value
                to_a[h] += grad * of_a
                to_b[h] += grad * of_b
                to_c[h] += grad * of_c
                to_d[h] += grad * of_d
                along_x += grad * ((b[h] - a[h]) * up + (d[h] - c[h]) * down)
                along_y += grad * ((c[h] - a[h]) * left + (d[h] - b[h]) * right)
            if in_x:
                queries_grad[i, 0] -= along_x * step
                keys_grad[j, 0] += along_x * step
            if in_y:
                queries_grad[i, 1] -= along_y * step
                keys_grad[j, 1] += along_y * step


class _Problem:
    """Inputs as the loops take them, and what is computed for a block of queries."""

    def __init__(self, q, k, v, table, query_positions, key_positions, step):
        self.wide = wide = _wide(q, table)
        self.k_BHKD, self.v_BHKC = (x.to(wide).transpose(1, 2).contiguous() for x in (k, v))
        self.table = table.to(wide).permute(1, 2, 0).contiguous().numpy()
        self.queries, self.keys = (x.detach().to(wide).contiguous().numpy() for x in (query_positions, key_positions))
        self.step, self.least = (self.table.dtype.type(number) for number in (step, LEAST))

    def block(self, x: Tensor, image: int, part: slice) -> Tensor:
        """Some rows of (B, N, heads, ...) as (heads, n, ...)."""
        return x[image, part].to(self.wide).transpose(0, 1)

    def weights(self, image: int, part: slice, q_HND: Tensor) -> Tensor:
        """The weights (heads, n, K), for queries that were scaled."""
        heads, count, _ = q_HND.shape
        values = np.empty((count, self.keys.shape[1], heads), self.table.dtype)  # heads last: they lie side by side
        _look_up(self.table, self.queries[image, part], self.keys[image], self.step, self.least, values)
        bias = torch.from_numpy(values).log_().permute(2, 0, 1)
        return torch.bmm(q_HND, self.k_BHKD[image].mT).add_(bias).softmax(-1)


def _bridging_attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    step: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    problem = _Problem(q, k, v, table, query_positions, key_positions, step)
    out = torch.empty(*q.shape[:3], v.shape[-1], dtype=v.dtype)

    def work(at: tuple[int, slice]) -> None:
        weight = problem.weights(*at, problem.block(q, *at) * scale)
        out[at] = torch.bmm(weight, problem.v_BHKC[at[0]]).transpose(0, 1)

    each(work, _blocks(q, k.shape[1]))
    return out, torch.full(q.shape[:3], -torch.inf, dtype=problem.wide)  # see bridging_attention_op


def _bridging_attention_backward_cpu(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    out: Tensor,
    lse: Tensor,
    step: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = _Problem(q, k, v, table, query_positions, key_positions, step)
    dq, queries_grad = torch.empty_like(q, memory_format=torch.contiguous_format), np.zeros_like(problem.queries)

    def work(blocks: list[tuple[int, slice]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dk, dv = torch.zeros_like(problem.k_BHKD), torch.zeros_like(problem.v_BHKC)
        table_grad, keys_grad = np.zeros_like(problem.table), np.zeros_like(problem.keys)
        for image, part in blocks:
            g, q_part = problem.block(grad, image, part), problem.block(q, image, part) * scale
            weight = problem.weights(image, part, q_part)
            dv[image] += torch.bmm(weight.mT, g)
            product = torch.bmm(g, problem.v_BHKC[image].mT)
            logits_grad = (product - (weight * product).sum(-1, keepdim=True)).mul_(weight)
            dq[image, part] = (torch.bmm(logits_grad, problem.k_BHKD[image]) * scale).transpose(0, 1)
            dk[image] += torch.bmm(logits_grad.mT, q_part)
            places = problem.table, problem.queries[image, part], problem.keys[image], problem.step, problem.least
            rows = logits_grad.permute(1, 2, 0).contiguous().numpy()
            _spread(*places, rows, table_grad, queries_grad[image, part], keys_grad[image])
        return dk, dv, torch.from_numpy(table_grad), torch.from_numpy(keys_grad)

    # one share for each thread, with sums of its own, which are added in order: the result is always the same
    blocks, threads = _blocks(q, k.shape[1]), torch.get_num_threads()
    shares = [blocks[part] for part in slices(0, len(blocks), -(-len(blocks) // threads))]
    dk, dv, dtable, dkeys = (functools.reduce(torch.add, sums) for sums in zip(*each(work, shares)))
    attention = dq, *(x.transpose(1, 2).to(q.dtype).contiguous() for x in (dk, dv))
    moved = (x.to(table.dtype) for x in (dtable.permute(2, 0, 1).contiguous(), torch.from_numpy(queries_grad), dkeys))
    return *attention, *moved


# Triton: a program reads the four cells of every query and key from the table in place.


@triton.jit
def _axis(key, query, step, size):
    """`_cell` of a tile of queries by keys."""
    at = (key[None, :] - query[:, None]) * step + (size - 1) * 0.5
    inside = (at > 0) & (at < size - 1)
    at = tl.minimum(tl.maximum(at, 0.0), (size - 1) * 1.0)
    first = tl.minimum(tl.floor(at).to(tl.int32), size - 2)
    return first, at - first, inside


@triton.jit
def _location(table, numbers, queries, keys, query_row, key_row, seen_query, seen_key, rows, columns):
    """Of a tile of queries by keys: the four cells, how far right and down, and which lie inside along x and y."""
    step = tl.load(numbers + 1)
    x, right, in_x = _axis(
        tl.load(keys + key_row * 2, mask=seen_key, other=0.0),
        tl.load(queries + query_row * 2, mask=seen_query, other=0.0), step, columns,
    )  # fmt: skip
    y, down, in_y = _axis(
        tl.load(keys + key_row * 2 + 1, mask=seen_key, other=0.0),
        tl.load(queries + query_row * 2 + 1, mask=seen_query, other=0.0), step, rows,
    )  # fmt: skip
    cell = y * columns + x
    a, b = tl.load(table + cell), tl.load(table + cell + 1)
    c, d = tl.load(table + cell + columns), tl.load(table + cell + columns + 1)
    return cell, right, down, in_x, in_y, a, b, c, d


@triton.jit(do_not_specialize=["queries_count", "keys_count", "rows", "columns"])
def bridging_attention_fwd_kernel(
    q, k, v, table, queries, keys, numbers, out, lse,
    queries_count, keys_count, heads, width, channels, rows, columns,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out and lse of a block of queries of an image and a head, with a running softmax over blocks of keys."""
    image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    scale, least = tl.load(numbers), tl.load(numbers + 2)
    d, c, j = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    query = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    seen_query = query < queries_count
    query_row = image * queries_count + query
    table += head.to(tl.int64) * rows * columns
    q_tile = load_rows(q, query_row * heads + head, d, seen_query, width)
    top = tl.full((BLOCK_N,), float("-inf"), scale.dtype)
    norm = tl.zeros((BLOCK_N,), scale.dtype)
    total = tl.zeros((BLOCK_N, BLOCK_C), scale.dtype)
    for start in range(0, keys_count, BLOCK_K):
        seen_key = start + j < keys_count
        key_row = image * keys_count + start + j
        _, right, down, _, _, a, b, e, f = _location(
            table, numbers, queries, keys, query_row, key_row, seen_query, seen_key, rows, columns
        )
        value = (a * (1 - right) + b * right) * (1 - down) + (e * (1 - right) + f * right) * down
        k_tile = load_rows(k, key_row * heads + head, d, seen_key, width)
        logits = dot(q_tile, tl.trans(k_tile), scale.dtype) * scale + tl.log(tl.where(value < least, least, value))
        logits = tl.where(seen_key[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        weight, decay = tl.exp(logits - new_top[:, None]), tl.exp(top - new_top)
        v_tile = load_rows(v, key_row * heads + head, c, seen_key, channels)
        norm = norm * decay + tl.sum(weight, 1)
        total = total * decay[:, None] + dot(weight, v_tile, scale.dtype)
        top = new_top
    store_rows(out, total / norm[:, None], query_row * heads + head, c, seen_query, channels)
    tl.store(lse + query_row * heads + head, top + tl.log(norm), mask=seen_query)


@triton.jit(do_not_specialize=["queries_count", "keys_count", "rows", "columns", "share"])
def bridging_attention_bwd_kernel(
    g, q, k, v, table, queries, keys, numbers, lse, delta, dq, dk, dv, dtable, dqueries, dkeys,
    queries_count, keys_count, heads, width, channels, rows, columns, batch, share,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys of an image and a head, from a share of the queries.

    Those of keys are summed over the shares afterwards, those of queries over blocks of keys, those of the table here.
    """
    image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    scale, step, least = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    d, c, j = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    key = tl.program_id(2) * BLOCK_K + j
    seen_key = key < keys_count
    key_row = image * keys_count + key
    table += head.to(tl.int64) * rows * columns
    dtable += head.to(tl.int64) * rows * columns
    # the rows of q in the part of dq that belongs to this block of keys
    part = tl.program_id(2).to(tl.int64) * batch * queries_count
    k_tile = load_rows(k, key_row * heads + head, d, seen_key, width)
    v_tile = load_rows(v, key_row * heads + head, c, seen_key, channels)
    total_k = tl.zeros((BLOCK_K, BLOCK_D), scale.dtype)
    total_v = tl.zeros((BLOCK_K, BLOCK_C), scale.dtype)
    total_x = tl.zeros((BLOCK_K,), scale.dtype)
    total_y = tl.zeros((BLOCK_K,), scale.dtype)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, queries_count), BLOCK_N):
        query = start + tl.arange(0, BLOCK_N)
        seen_query = query < queries_count
        seen = seen_query[:, None] & seen_key[None, :]
        query_row = image * queries_count + query
        row = query_row * heads + head
        q_tile = load_rows(q, row, d, seen_query, width)
        g_tile = load_rows(g, row, c, seen_query, channels)
        norm = tl.load(lse + row, mask=seen_query, other=0.0)
        mean = tl.load(delta + row, mask=seen_query, other=0.0)
        cell, right, down, in_x, in_y, a, b, e, f = _location(
            table, numbers, queries, keys, query_row, key_row, seen_query, seen_key, rows, columns
        )
        value = (a * (1 - right) + b * right) * (1 - down) + (e * (1 - right) + f * right) * down
        logits = dot(q_tile, tl.trans(k_tile), scale.dtype) * scale + tl.log(tl.where(value < least, least, value))
        weight = tl.where(seen, tl.exp(logits - norm[:, None]), 0.0)
        grad = weight * (dot(g_tile, tl.trans(v_tile), scale.dtype) - mean[:, None])
        total_v += dot(tl.trans(weight), g_tile, scale.dtype)
        total_k += dot(tl.trans(grad), q_tile, scale.dtype)
        store_rows(dq, dot(grad, k_tile, scale.dtype) * scale, part * heads + row, d, seen_query, width)
        grad = tl.where(value < least, 0.0, grad / value)
        tl.atomic_add(dtable + cell, grad * (1 - down) * (1 - right), mask=seen, sem="relaxed")
        tl.atomic_add(dtable + cell + 1, grad * (1 - down) * right, mask=seen, sem="relaxed")
        tl.atomic_add(dtable + cell + columns, grad * down * (1 - right), mask=seen, sem="relaxed")
        tl.atomic_add(dtable + cell + columns + 1, grad * down * right, mask=seen, sem="relaxed")
        along_x = tl.where(in_x, grad * ((b - a) * (1 - down) + (f - e) * down), 0.0) * step
        along_y = tl.where(in_y, grad * ((e - a) * (1 - right) + (f - b) * right), 0.0) * step
        tl.store(dqueries + (part * heads + row) * 2, -tl.sum(along_x, 1), mask=seen_query)
        tl.store(dqueries + (part * heads + row) * 2 + 1, -tl.sum(along_y, 1), mask=seen_query)
        total_x += tl.sum(along_x, 0)
        total_y += tl.sum(along_y, 0)
    key_row = (tl.program_id(1).to(tl.int64) * batch * keys_count + key_row) * heads + head
    store_rows(dk, total_k * scale, key_row, d, seen_key, width)
    store_rows(dv, total_v, key_row, c, seen_key, channels)
    tl.store(dkeys + key_row * 2, total_x, mask=seen_key)
    tl.store(dkeys + key_row * 2 + 1, total_y, mask=seen_key)


# Programs of the backward, at least, where there are as many blocks of queries.
PROGRAMS = 1024


def _tiles(q: Tensor, v: Tensor, queries: int) -> dict[str, int]:
    """Smaller tiles for longer rows, so that the shared memory holds all tiles of a program. Of at most `queries`, for
    registers to hold the ten tiles of queries by keys. One stage, since others would hold the cells of the next keys in
    shared memory, too, and leave room for one program alone."""
    (_, count, _, depth), keys, channels = q.shape, v.shape[1], v.shape[-1]
    row = max(depth, channels) * q.element_size()
    return dict(
        BLOCK_N=tile_of(count, queries if row <= 256 else 16),
        BLOCK_K=tile_of(keys, 64 if row <= 256 else 32 if row <= 512 else 16),
        BLOCK_D=tile_of(depth),
        BLOCK_C=tile_of(channels),
        num_stages=1,
    )


def _numbers(q: Tensor, table: Tensor, step: float, scale: float) -> Tensor:
    """scale, step and the least value, as a tensor, since numbers are passed in float32. Nothing is copied from the
    CPU, which would wait for the GPU."""
    numbers = q.new_empty(3, dtype=_wide(q, table))
    for i, number in enumerate((scale, step, LEAST)):
        numbers[i].fill_(number)
    return numbers


def _bridging_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    step: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    (batch, count, heads, depth), channels, numbers = q.shape, v.shape[-1], _numbers(q, table, step, scale)
    out = v.new_empty(batch, count, heads, channels)
    lse = numbers.new_empty(batch, count, heads)
    tiles = _tiles(q, v, 32)
    places = [x.to(numbers.dtype).contiguous() for x in (table, query_positions, key_positions)]
    with torch.cuda.device_of(q):
        bridging_attention_fwd_kernel[batch * heads, triton.cdiv(count, tiles["BLOCK_N"])](
            *operands(q, k, v), *places, numbers, out, lse,
            count, k.shape[1], heads, depth, channels, *table.shape[1:], **tiles,
        )  # fmt: skip
    return out, lse


def _bridging_attention_backward_triton(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    out: Tensor,
    lse: Tensor,
    step: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, count, heads, depth), keys, channels = q.shape, k.shape[1], v.shape[-1]
    numbers, tiles = _numbers(q, table, step, scale), _tiles(q, v, 16)
    key_blocks, query_blocks = triton.cdiv(keys, tiles["BLOCK_K"]), triton.cdiv(count, tiles["BLOCK_N"])
    share = triton.cdiv(query_blocks, triton.cdiv(PROGRAMS, batch * heads * key_blocks)) * tiles["BLOCK_N"]
    shares = triton.cdiv(count, share)
    dq, dqueries = (numbers.new_empty(key_blocks, batch, count, heads, n) for n in (depth, 2))
    dk, dv, dkeys = (numbers.new_empty(shares, batch, keys, heads, n) for n in (depth, channels, 2))
    dtable = numbers.new_zeros(table.shape)
    delta = (grad.to(lse.dtype) * out).sum(-1)
    places = [x.to(numbers.dtype).contiguous() for x in (table, query_positions, key_positions)]
    with torch.cuda.device_of(q):
        bridging_attention_bwd_kernel[batch * heads, shares, key_blocks](
            *operands(grad, q, k, v), *places, numbers, lse, delta, dq, dk, dv, dtable, dqueries, dkeys,
            count, keys, heads, depth, channels, *table.shape[1:], batch, share, num_warps=8, **tiles,
        )  # fmt: skip
    dq = dq.squeeze(0) if key_blocks == 1 else dq.sum(0)
    attention = (x.to(q.dtype) for x in (dq, dk.sum(0), dv.sum(0)))
    moved = (x.to(table.dtype) for x in (dtable, dqueries.sum((0, 3)), dkeys.sum((0, 3))))
    return *attention, *moved  # type: ignore[return-value]


@torch.library.custom_op("attlas::bridging_attention", mutates_args=())
def bridging_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    step: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out (B, N, heads, C), and lse (B, N, heads) for the backward of the same path.

    On a CPU lse is -inf, as the backward there computes the softmax again: forward and backward must take the same
    path (ATTLAS_KERNELS must not change in between).
    """
    run = pick(
        q, reference=bridging_attention_reference, triton=_bridging_attention_triton, cpu=_bridging_attention_cpu
    )
    return run(q, k, v, table, query_positions, key_positions, step, scale)


@bridging_attention_op.register_fake
def _(q, k, v, table, query_positions, key_positions, step, scale):
    return v.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=_wide(q, table))


@torch.library.custom_op("attlas::bridging_attention_backward", mutates_args=())
def bridging_attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    out: Tensor,
    lse: Tensor,
    step: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = pick(
        q,
        reference=bridging_attention_backward_reference,
        triton=_bridging_attention_backward_triton,
        cpu=_bridging_attention_backward_cpu,
    )
    return run(grad, q, k, v, table, query_positions, key_positions, out, lse, step, scale)


@bridging_attention_backward_op.register_fake
def _(grad, q, k, v, table, query_positions, key_positions, out, lse, step, scale):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, table, query_positions, key_positions))


def _save(ctx, inputs, output):
    *tensors, ctx.step, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return *bridging_attention_backward_op(grad, *ctx.saved_tensors, ctx.step, ctx.scale), None, None


bridging_attention_op.register_autograd(_backward, setup_context=_save)
decompose(bridging_attention_op, bridging_attention_reference)
