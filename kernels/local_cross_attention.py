"""Local cross-attention: each cell of a coarse grid reads its own region of a fine grid.

    out_i = Σ_j P_ij v_j;   P_ij = softmax_j(scale q_i·k_j), over the cells j of the region of token i

The tokens i = (row, column) are a grid of h x w, the cells j one of H x W. The region of a token has the rows from
⌊row H/h⌋ - halo up to, but without, ⌈(row + 1) H/h⌉ + halo, as far as they are on the map; columns likewise. So without
a halo the regions are those of adaptive pooling: blocks of H/h x W/w where that is whole, else blocks that share a row
or a column with their neighbors. The coarse grid may also be the larger one: then several tokens read one cell.

Memory never holds a (hw x HW) matrix, nor all regions: a cell is read in place, once where the blocks are whole. The
backward recomputes the weights from lse_i, the logarithm of the sum over j. For g = ∂/∂out, δ_i = g_i·out_i and
S_ij = P_ij (g_i·v_j - δ_i):

    ∂q_i = scale Σ_j S_ij k_j;  ∂k_j = scale Σ_i S_ij q_i;  ∂v_j = Σ_i P_ij g_i

The sums over i are over the tokens whose regions hold cell j: along one axis those from ⌊(j - halo) h/H⌋ up to, but
without, ⌈(j + 1 + halo) h/H⌉. So a program owns the gradient of a cell, and the result does not depend on chance.

Legend: B images, D channels of q and k, C channels of v.

Source: "saliency-enhancing local attention" of Vision Remember, arXiv 2506.03928, without official code. The rule of
the regions and the halo are ours.
"""

import numpy as np
import torch
from torch import Tensor

from .checks import check_integer, check_maps, check_number, sum_dtype
from .dispatch import compiled, decompose, each, pick, slices, tl, triton
from .tiles import item_rows, load_rows, store_rows


def local_cross_attention(q: Tensor, k: Tensor, v: Tensor, halo: int = 0, scale: float | None = None) -> Tensor:
    """Attention of a coarse grid to regions of a fine one; differentiable in q, k and v. Half types are summed in
    float32.

    Args:
        q: queries (B, h, w, heads, D), floating point.
        k: keys (B, H, W, heads, D), in the same dtype.
        v: values (B, H, W, heads, C), in the same dtype.
        halo: number of cells, 0 or more, by which a region is larger on each of its four sides; it ends at the border.
        scale: factor of the products q·k, at least 0; D^-0.5 by default.

    Returns:
        (B, h, w, heads, C), in the dtype of v.

    Raises:
        ValueError: shapes that do not fit together, a grid without a cell, a negative halo or scale.
        TypeError: dtypes of q, k and v that differ or are not floating point; a halo that is no integer.
    """
    check_maps(q, k, v)
    check_integer(halo, "halo", at_least=0, at_most=2**24)
    if scale is not None:
        check_number(scale, "scale")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return local_cross_attention_op(q, k, v, halo, scale)[0]


# --- reference -------------------------------------------------------------------------------------------------------


def _places(tokens: int, cells: int, halo: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Along one axis the cells of each region (tokens, most), and which of them are no repetition of the last."""
    token = torch.arange(tokens, device=device)
    start = (token * cells // tokens - halo).clamp(min=0)
    stop = (((token + 1) * cells + tokens - 1) // tokens + halo).clamp(max=cells)
    most = cells // tokens if cells % tokens == 0 else cells // tokens + 2
    place = start.unsqueeze(1) + torch.arange(min(most + 2 * halo, cells), device=device)
    stop = stop.unsqueeze(1)
    return torch.minimum(place, stop - 1), place < stop


class _Regions:
    """The regions of the tokens of q on the map k."""

    def __init__(self, q: Tensor, k: Tensor, halo: int):
        self.rows, has_row = _places(q.shape[1], k.shape[1], halo, k.device)
        self.columns, has_column = _places(q.shape[2], k.shape[2], halo, k.device)
        has = has_row[:, None, :, None] & has_column[None, :, None, :]
        self.outside = ~has.flatten(2).unsqueeze(2)  # (h, w, 1, R)

    def read(self, x: Tensor) -> Tensor:
        """(B, H, W, heads, C) -> (B, h, w, heads, R, C), in the dtype of sums."""
        x = x.to(sum_dtype(x)).index_select(1, self.rows.flatten()).index_select(2, self.columns.flatten())
        x = x.unflatten(1, self.rows.shape).unflatten(3, self.columns.shape)  # B h R w S heads C
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)

    def add(self, x: Tensor, like: Tensor) -> Tensor:
        """The transpose of `read`: every cell sums its copies."""
        x = x.unflatten(4, (self.rows.shape[1], self.columns.shape[1])).permute(0, 1, 4, 2, 5, 3, 6)
        x = x.flatten(3, 4).flatten(1, 2)
        sums = x.new_zeros(*x.shape[:2], like.shape[2], *x.shape[3:]).index_add(2, self.columns.flatten(), x)
        return sums.new_zeros(like.shape).index_add(1, self.rows.flatten(), sums).to(like.dtype)

    def logits(self, q: Tensor, keys: Tensor, scale: float) -> Tensor:
        """(B, h, w, heads, R), -inf outside of the region."""
        logits = (keys @ q.to(keys.dtype).unsqueeze(-1)).squeeze(-1) * scale
        return logits.masked_fill(self.outside, -torch.inf)


def local_cross_attention_reference(q: Tensor, k: Tensor, v: Tensor, halo: int, scale: float) -> tuple[Tensor, Tensor]:
    """out, with all regions in memory, and lse (B, h, w, heads)."""
    regions = _Regions(q, k, halo)
    logits = regions.logits(q, regions.read(k), scale)
    out = (logits.softmax(-1).unsqueeze(-2) @ regions.read(v)).squeeze(-2)
    return out.to(v.dtype), logits.logsumexp(-1)


def local_cross_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, halo: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    regions, wide = _Regions(q, k, halo), lse.dtype
    keys, values, g = regions.read(k), regions.read(v), grad.to(wide)
    weight = (regions.logits(q, keys, scale) - lse.unsqueeze(-1)).exp()
    mean = (g * out.to(wide)).sum(-1, keepdim=True)
    slope = weight * ((values @ g.unsqueeze(-1)).squeeze(-1) - mean) * scale
    dq = (slope.unsqueeze(-2) @ keys).squeeze(-2).to(q.dtype)
    dk = regions.add(slope.unsqueeze(-1) * q.to(wide).unsqueeze(-2), k)
    return dq, dk, regions.add(weight.unsqueeze(-1) * g.unsqueeze(-2), v)


# --- CPU -------------------------------------------------------------------------------------------------------------

# There is one query to a region, so nothing is a product of matrices. A thread has some heads of an image: it alone
# adds to the gradients of their keys.


@compiled
def _region(token, tokens, cells, halo):
    """The cells of a token along one axis, from the first up to, but without, the second number."""
    return max(0, token * cells // tokens - halo), min(cells, ((token + 1) * cells + tokens - 1) // tokens + halo)


@compiled(fastmath={"contract", "reassoc"})
def _attend(q, k, v, scale, halo, out, lse, logits):
    """q (h, w, heads, D), k (H, W, heads, D), v (H, W, heads, C) -> out, lse; `logits` holds those of a region."""
    (height, width, heads, depth), channels = k.shape, v.shape[3]
    for i in range(q.shape[0]):
        top, bottom = _region(i, q.shape[0], height, halo)
        for j in range(q.shape[1]):
            left, right = _region(j, q.shape[1], width, halo)
            for head in range(heads):
                query, mixed, n = q[i, j, head], out[i, j, head], 0
                highest = -q.dtype.type(np.inf)
                for y in range(top, bottom):
                    for x in range(left, right):
                        key, product = k[y, x, head], q.dtype.type(0)
                        for d in range(depth):
                            product += query[d] * key[d]
                        logits[n] = product * scale
                        if logits[n] > highest:
                            highest = logits[n]
                        n += 1
                total, n = q.dtype.type(0), 0
                mixed[:] = 0
                for y in range(top, bottom):
                    for x in range(left, right):
                        value, weight = v[y, x, head], np.exp(logits[n] - highest)
                        total += weight
                        n += 1
                        for c in range(channels):
                            mixed[c] += weight * value[c]
                for c in range(channels):
                    mixed[c] /= total
                if highest == np.inf and not np.isnan(logits[:n]).any():
                    lse[i, j, head] = highest  # as of the reference, where `total` is NaN
                else:
                    lse[i, j, head] = highest + np.log(total)


@compiled(fastmath={"contract", "reassoc"})
def _attend_backward(g, q, k, v, lse, delta, scale, halo, dq, dk, dv):
    """Gradients of `_attend`; dq, dk and dv are zero before. delta (h, w, heads) is g·out."""
    (height, width, heads, depth), channels = k.shape, v.shape[3]
    for i in range(q.shape[0]):
        top, bottom = _region(i, q.shape[0], height, halo)
        for j in range(q.shape[1]):
            left, right = _region(j, q.shape[1], width, halo)
            for head in range(heads):
                query, slope, dquery = q[i, j, head], g[i, j, head], dq[i, j, head]
                for y in range(top, bottom):
                    for x in range(left, right):
                        key, value, dkey, dvalue = k[y, x, head], v[y, x, head], dk[y, x, head], dv[y, x, head]
                        product, change = q.dtype.type(0), q.dtype.type(0)
                        for d in range(depth):
                            product += query[d] * key[d]
                        for c in range(channels):
                            change += slope[c] * value[c]
                        weight = np.exp(product * scale - lse[i, j, head])
                        change = weight * (change - delta[i, j, head]) * scale
                        for d in range(depth):
                            dquery[d] += change * key[d]
                            dkey[d] += change * query[d]
                        for c in range(channels):
                            dvalue[c] += weight * slope[c]


def _turns(q: Tensor) -> list[tuple]:
    """(image, all rows, all columns, some heads) for the threads."""
    batch, heads = q.shape[0], q.shape[3]
    step = -(-heads * batch // torch.get_num_threads()) or 1
    return [(b, slice(None), slice(None), some) for b in range(batch) for some in slices(0, heads, step)]


def _local_cross_attention_cpu(q: Tensor, k: Tensor, v: Tensor, halo: int, scale: float) -> tuple[Tensor, Tensor]:
    wide = sum_dtype(q)
    out, lse = q.new_empty(*q.shape[:-1], v.shape[-1], dtype=wide), q.new_empty(q.shape[:-1], dtype=wide)
    q_array, k_array, v_array = (x.detach().to(wide).contiguous().numpy() for x in (q, k, v))
    factor, outs = q_array.dtype.type(scale), (out.numpy(), lse.numpy())
    most = _Regions(q, k, halo).outside.shape[-1]

    def work(turn: tuple) -> None:
        arrays = (x[turn] for x in (q_array, k_array, v_array))
        _attend(*arrays, factor, halo, *(x[turn] for x in outs), np.empty(most, q_array.dtype))

    each(work, _turns(q))
    return out.to(v.dtype), lse


def _local_cross_attention_backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, halo: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = lse.dtype
    g, *maps = (x.detach().to(wide).contiguous() for x in (grad, q, k, v))
    delta = (g * out.detach().to(wide)).sum(-1)
    gradients = [torch.zeros_like(x) for x in maps]
    arrays = [x.numpy() for x in (g, *maps, lse.detach().contiguous(), delta)]
    factor = arrays[0].dtype.type(scale)

    def work(turn: tuple) -> None:
        _attend_backward(*(x[turn] for x in arrays), factor, halo, *(x.numpy()[turn] for x in gradients))

    each(work, _turns(q))
    dq, dk, dv = (x.to(like.dtype) for x, like in zip(gradients, (q, k, v)))
    return dq, dk, dv


# --- Triton ----------------------------------------------------------------------------------------------------------

# A program of the forward, and of ∂q, has one token of a head, and takes its region in tiles of cells. One of ∂k and ∂v
# has a tile of cells, and takes the tokens that read them one after the other.

ELEMENTS = 1024  # of a tile of cells by the channels of a head


@triton.jit
def region_of(token, tokens, cells, halo):
    """The first cell of a token along one axis, and how many there are."""
    first = tl.maximum(token * cells // tokens - halo, 0)
    return first, tl.minimum(((token + 1) * cells + tokens - 1) // tokens + halo, cells) - first


@triton.jit
def readers_of(cell, tokens, cells, halo):
    """The first token that reads a cell along one axis, and the one behind the last."""
    first = tl.maximum(cell - halo, 0) * tokens // cells
    return first, tl.minimum(((cell + 1 + halo) * tokens + cells - 1) // cells, tokens)


@triton.jit
def cells_in(token, columns, rows, height, width, halo):
    """How many cells the region of a token has."""
    _, high = region_of(token // columns, rows, height, halo)
    _, wide = region_of(token % columns, columns, width, halo)
    return high * wide


@triton.jit
def cells_of(image, token, columns, rows, head, heads, height, width, halo, start, BLOCK_R: tl.constexpr):
    """Rows of k and v of a tile of cells of a region, and which of them exist."""
    top, high = region_of(token // columns, rows, height, halo)
    left, wide = region_of(token % columns, columns, width, halo)
    cell = start + tl.arange(0, BLOCK_R)
    row = ((image * height + top + cell // wide) * width + left + cell % wide) * heads + head
    return row, cell < high * wide


@triton.jit(do_not_specialize=["heads", "height", "width", "rows", "columns", "halo"])
def local_cross_attention_fwd_kernel(
    q, k, v, scale, out, lse, heads, height, width, rows, columns, halo, depth, channels,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out and lse of one token of a head, with a running softmax over tiles of its region."""
    item = tl.program_id(0).to(tl.int64)  # ((image · h + i) · w + j) · heads + head
    head, token, image = item % heads, item // heads % (rows * columns), item // heads // (rows * columns)
    d, c, factor = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.load(scale)
    query = tl.load(q + item * depth + d, mask=d < depth, other=0.0).to(factor.dtype)
    top, norm = factor * 0 + float("-inf"), factor * 0
    total = tl.zeros((BLOCK_C,), factor.dtype)
    for start in range(0, cells_in(token, columns, rows, height, width, halo), BLOCK_R):
        row, inside = cells_of(image, token, columns, rows, head, heads, height, width, halo, start, BLOCK_R)
        keys = load_rows(k, row, d, inside, depth).to(factor.dtype)
        logits = tl.where(inside, tl.sum(keys * query[None, :], 1) * factor, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 0))
        weight, decay = tl.exp(logits - new_top), tl.exp(top - new_top)
        norm = norm * decay + tl.sum(weight, 0)
        values = load_rows(v, row, c, inside, channels).to(factor.dtype)
        total = total * decay + tl.sum(weight[:, None] * values, 0)
        top = new_top
    tl.store(out + item * channels + c, (total / norm).to(out.dtype.element_ty), mask=c < channels)
    tl.store(lse + item, top + tl.log(norm))


@triton.jit(do_not_specialize=["heads", "height", "width", "rows", "columns", "halo"])
def local_cross_attention_bwd_q_kernel(
    g, q, k, v, lse, delta, scale, dq, heads, height, width, rows, columns, halo, depth, channels,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂q of one token of a head."""
    item = tl.program_id(0).to(tl.int64)
    head, token, image = item % heads, item // heads % (rows * columns), item // heads // (rows * columns)
    d, c, factor = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.load(scale)
    query = tl.load(q + item * depth + d, mask=d < depth, other=0.0).to(factor.dtype)
    slope = tl.load(g + item * channels + c, mask=c < channels, other=0.0).to(factor.dtype)
    norm, mean = tl.load(lse + item), tl.load(delta + item)
    total = tl.zeros((BLOCK_D,), factor.dtype)
    for start in range(0, cells_in(token, columns, rows, height, width, halo), BLOCK_R):
        row, inside = cells_of(image, token, columns, rows, head, heads, height, width, halo, start, BLOCK_R)
        keys = load_rows(k, row, d, inside, depth).to(factor.dtype)
        values = load_rows(v, row, c, inside, channels).to(factor.dtype)
        weight = tl.where(inside, tl.exp(tl.sum(keys * query[None, :], 1) * factor - norm), 0.0)
        change = weight * (tl.sum(values * slope[None, :], 1) - mean) * factor
        total += tl.sum(change[:, None] * keys, 0)
    tl.store(dq + item * depth + d, total.to(dq.dtype.element_ty), mask=d < depth)


@triton.jit(do_not_specialize=["heads", "height", "width", "rows", "columns", "halo", "reach_y", "reach_x"])
def local_cross_attention_bwd_kv_kernel(
    g, q, k, v, lse, delta, scale, dk, dv,
    heads, height, width, rows, columns, halo, depth, channels, reach_y, reach_x,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂k and ∂v of a tile of cells of a head; at most reach_y x reach_x tokens read a cell."""
    image, cell, inside = item_rows(height * width, BLOCK_R)
    head, d, c, factor = tl.program_id(1), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.load(scale)
    row = (image * height * width + cell) * heads + head
    keys = load_rows(k, row, d, inside, depth).to(factor.dtype)
    values = load_rows(v, row, c, inside, channels).to(factor.dtype)
    top, bottom = readers_of(cell // width, rows, height, halo)
    left, right = readers_of(cell % width, columns, width, halo)
    dkeys = tl.zeros((BLOCK_R, BLOCK_D), factor.dtype)
    dvalues = tl.zeros((BLOCK_R, BLOCK_C), factor.dtype)
    for number in range(reach_y * reach_x):
        i, j = top + number // reach_x, left + number % reach_x
        reads = inside & (i < bottom) & (j < right)
        token = ((image * rows + i) * columns + j) * heads + head
        queries = load_rows(q, token, d, reads, depth).to(factor.dtype)
        slopes = load_rows(g, token, c, reads, channels).to(factor.dtype)
        norm = tl.load(lse + token, mask=reads, other=0.0)
        mean = tl.load(delta + token, mask=reads, other=0.0)
        weight = tl.where(reads, tl.exp(tl.sum(keys * queries, 1) * factor - norm), 0.0)
        change = weight * (tl.sum(values * slopes, 1) - mean) * factor
        dkeys += change[:, None] * queries
        dvalues += weight[:, None] * slopes
    store_rows(dk, dkeys, row, d, inside, depth)
    store_rows(dv, dvalues, row, c, inside, channels)


def _sizes(q: Tensor, k: Tensor, v: Tensor, halo: int) -> tuple[list[int], dict[str, int]]:
    """What every kernel takes: numbers, and the sizes of tiles."""
    height, width, heads, depth = k.shape[1:]
    block_d, block_c = triton.next_power_of_2(depth), triton.next_power_of_2(v.shape[-1])
    tiles = dict(BLOCK_R=max(1, ELEMENTS // max(block_d, block_c)), BLOCK_D=block_d, BLOCK_C=block_c)
    return [heads, height, width, *q.shape[1:3], min(halo, max(height, width)), depth, v.shape[-1]], tiles


def _local_cross_attention_triton(q: Tensor, k: Tensor, v: Tensor, halo: int, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = (x.contiguous() for x in (q, k, v))
    out, lse = v.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=sum_dtype(q))
    numbers, tiles = _sizes(q, k, v, halo)
    if len(q):
        with torch.cuda.device_of(q):
            factor = torch.full((1,), scale, dtype=lse.dtype, device=q.device)
            local_cross_attention_fwd_kernel[(lse.numel(),)](q, k, v, factor, out, lse, *numbers, **tiles)
    return out, lse


def _local_cross_attention_backward_triton(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, halo: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad, q, k, v, lse = (x.contiguous() for x in (grad, q, k, v, lse))
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    delta = (grad.to(lse.dtype) * out).sum(-1)
    numbers, tiles = _sizes(q, k, v, halo)
    heads, height, width, rows, columns, halo, *_ = numbers
    axes = (rows, height), (columns, width)
    reach = [min(tokens, -((1 + 2 * halo) * -tokens // cells) + 1) for tokens, cells in axes]
    if len(q):
        with torch.cuda.device_of(q):
            factor = torch.full((1,), scale, dtype=lse.dtype, device=q.device)
            inputs = grad, q, k, v, lse, delta, factor
            local_cross_attention_bwd_q_kernel[(lse.numel(),)](*inputs, dq, *numbers, **tiles)
            grid = len(q) * triton.cdiv(height * width, tiles["BLOCK_R"]), heads
            local_cross_attention_bwd_kv_kernel[grid](*inputs, dk, dv, *numbers, *reach, **tiles)
    return dq, dk, dv


# --- operators -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("attlas::local_cross_attention", mutates_args=())
def local_cross_attention_op(q: Tensor, k: Tensor, v: Tensor, halo: int, scale: float) -> tuple[Tensor, Tensor]:
    """out (B, h, w, heads, C), and lse (B, h, w, heads) for the backward."""
    run = pick(
        q,
        reference=local_cross_attention_reference,
        triton=_local_cross_attention_triton,
        cpu=_local_cross_attention_cpu,
    )
    out, lse = run(q, k, v, halo, scale)
    return out.contiguous(), lse.contiguous()


@local_cross_attention_op.register_fake
def _(q, k, v, halo, scale):
    return v.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=sum_dtype(q))


@torch.library.custom_op("attlas::local_cross_attention_backward", mutates_args=())
def local_cross_attention_backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, halo: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    run = pick(
        q,
        reference=local_cross_attention_backward_reference,
        triton=_local_cross_attention_backward_triton,
        cpu=_local_cross_attention_backward_cpu,
    )
    dq, dk, dv = run(grad, q, k, v, out, lse, halo, scale)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@local_cross_attention_backward_op.register_fake
def _(grad, q, k, v, out, lse, halo, scale):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return *local_cross_attention_backward_op(grad, *ctx.saved_tensors, *ctx.numbers), None, None


local_cross_attention_op.register_autograd(_backward, setup_context=_save)
decompose(local_cross_attention_op, local_cross_attention_reference)
