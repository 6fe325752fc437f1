"""Halo attention: the queries of a block attend to a window, the block and a halo around it.

    out_i = Σ_j P_ij v_j;   P_ij = softmax_j(scale q_i·k_j + q_i·Rh[u - y + win - 1] + q_i·Rw[w - x + win - 1])

(y, x) is the position of query i in its block, (u, w) that of key j in the window, whose side is win = block + 2 halo.
Outside the map k and v are zero but not masked: such a key has the logit of its position, and its share of the softmax.
With a stride the queries are a coarser map; their positions in a block are 0, 1, ... regardless of the stride, as in
the published weights.

`window_attention` is the same with another term of position, a number b[h, i, j] for every head h and pair of a query
and a key in a window, the same for all blocks: the relative position bias of Swin (halo 0) and of overlapping windows
(HAT). Without a halo the map may be a cyclic shift by `shift` pixels: pixels that the shift brought together from two
ends of an axis hardly see each other, as their logits are 100 less (for each axis), as in the published networks.

Memory never holds all windows, (win / block)² copies of k and v: Triton reads windows in place, and a CPU copies those
of a few blocks at a time into a buffer that fits a cache. The two terms of position are products of q with small
tables, which PyTorch computes: `position` (..., 2 win) holds q_i·Rh for all u, then q_i·Rw for all w. The backward
recomputes the weights: Triton from lse_i, the logarithm of the sum over j, a CPU by another softmax. In the operator an
empty `position` (..., 0) or `bias` (heads, Q, 0) stands for none.

Gradients, for g = ∂/∂out, δ_i = g_i·out_i and S_ij = P_ij (g_i·v_j - δ_i):

    ∂q_i = scale Σ_j S_ij k_j;  ∂k_j = scale Σ_i S_ij q_i;  ∂v_j = Σ_i P_ij g_i;  ∂position = sums of S over w, over u
    ∂b[h, i, j] = sum of S_ij over images and blocks

Legend: B images, D channels of q and k, C channels of v, N all (image, head), P problems: all (image, head, block), Q
queries of a block.

Source: HaloNet, arXiv 2103.12731, without official code; details as in layers/halo_attn.py of timm 1.0.31. Windows with
a bias: Swin, arXiv 2103.14030, and HAT, arXiv 2205.04437.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_flags, check_floats, check_integer, check_maps, check_number, sum_dtype
from .dispatch import compiled, decompose, each, pick, slices, tl, triton, without_autocast
from .tiles import dot, from_regions, load_rows, operands, region_rows, store_rows, tile_of, to_regions


def halo_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_rel: Tensor,
    width_rel: Tensor,
    block_size: int,
    halo_size: int,
    scale: float | None = None,
    scale_position: bool = False,
) -> Tensor:
    """Attention of blocks to their windows; differentiable in all tensors. Half types are summed in float32.

    Args:
        q: queries (B, Hq, Wq, heads, D), floating point; H = stride Hq and W = stride Wq, where the stride divides
            `block_size`.
        k: keys (B, H, W, heads, D), in the same dtype; H and W are multiples of `block_size`.
        v: values (B, H, W, heads, C), in the same dtype.
        height_rel, width_rel: tables Rh and Rw (2 win - 1, D), shared by the heads; used in the dtype of q.
        block_size: side of a block of keys.
        halo_size: width of the halo, 0 or more.
        scale: factor of the products q·k, at least 0; D^-0.5 by default.
        scale_position: whether `scale` multiplies the terms of position, too.

    Returns:
        (B, Hq, Wq, heads, C), in the dtype of v.

    Raises:
        ValueError: shapes and sizes that do not fit together.
        TypeError: dtypes of q, k and v that differ or are not floating point; sizes that are not integers.
    """
    check_maps(q, k, v)
    check_floats(q=q, height_rel=height_rel, width_rel=width_rel)
    check_flags(scale_position=scale_position)
    stride, scale = _check_blocks(q, k, block_size, halo_size, scale)
    window, depth = block_size + 2 * halo_size, q.shape[-1]
    for name, table in (("height_rel", height_rel), ("width_rel", width_rel)):
        if table.shape != (2 * window - 1, depth):
            raise ValueError(
                f"{name} must have shape (2 win - 1, D) = ({2 * window - 1}, {depth}) for the window side "
                f"block_size + 2 halo_size = {window}, got {tuple(table.shape)}"
            )
    with without_autocast(q):
        position = position_terms(q, height_rel, width_rel, window, block_size // stride)
    position, no_bias = position * scale if scale_position else position, q.new_empty(q.shape[3], 0, 0)
    return halo_attention_op(q, k, v, position, no_bias, block_size, halo_size, 0, scale)[0]


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    block_size: int,
    halo_size: int = 0,
    shift: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Attention of blocks to their windows with a bias for every pair; differentiable in all tensors. Half types are
    summed in float32.

    Args:
        q, k, v, block_size, scale: as of `halo_attention`.
        bias: addend of the logits (heads, Q, win²), floating point, for the Q queries of a block and the win² pixels of
            its window, both row by row.
        halo_size: width of the halo, 0 or more: windows of neighboring blocks overlap by twice as much.
        shift: number of pixels, below `block_size`, by which the map was rolled up and to the left before; the last
            `shift` rows and columns come from the other end. 0 with a halo or a stride.

    Returns:
        (B, Hq, Wq, heads, C), in the dtype of v.

    Raises:
        ValueError: shapes and sizes that do not fit together.
        TypeError: dtypes of q, k and v that differ or are not floating point; sizes that are not integers.
    """
    check_maps(q, k, v)
    check_floats(q=q, bias=bias)
    stride, scale = _check_blocks(q, k, block_size, halo_size, scale)
    check_integer(shift, "shift", 0, block_size - 1)
    if shift and (halo_size or stride > 1):
        raise ValueError(f"shift = {shift} must be 0 with halo_size = {halo_size} and stride {stride}")
    shape = q.shape[3], (block_size // stride) ** 2, (block_size + 2 * halo_size) ** 2
    if bias.shape != shape:
        raise ValueError(f"bias must have shape (heads, Q, win²) = {shape}, got {tuple(bias.shape)}")
    return halo_attention_op(q, k, v, q.new_empty(*q.shape[:-1], 0), bias, block_size, halo_size, shift, scale)[0]


def _check_blocks(q: Tensor, k: Tensor, block_size: int, halo_size: int, scale: float | None) -> tuple[int, float]:
    """The stride of the queries and the scale, of arguments that are checked."""
    check_integer(block_size, "block_size")
    check_integer(halo_size, "halo_size", at_least=0)
    if scale is not None:
        check_number(scale, "scale")
    (rows, columns), (height, width) = q.shape[1:3], k.shape[1:3]
    if height % block_size or width % block_size:
        raise ValueError(f"H and W of k must be multiples of block_size = {block_size}, got {height} and {width}")
    stride = height // rows
    if (rows * stride, columns * stride) != (height, width) or not stride or block_size % stride:
        raise ValueError(
            f"q must have the height and width of k, {height} and {width}, both divided by a stride that divides "
            f"block_size = {block_size}, got {rows} and {columns}"
        )
    return stride, q.shape[-1] ** -0.5 if scale is None else float(scale)


def position_terms(q: Tensor, height_rel: Tensor, width_rel: Tensor, window: int, side: int) -> Tensor:
    """q·Rh[u - y + win - 1] for all u, then q·Rw[w - x + win - 1] for all w: (B, Hq, Wq, heads, 2 win).

    `side` is that of a block of queries.
    """
    places = torch.arange(window, device=q.device) - torch.arange(side, device=q.device).unsqueeze(1) + window - 1
    by_height, by_width = (
        x.to(q.dtype).index_select(0, places.flatten()).view(side, window, -1) for x in (height_rel, width_rel)
    )
    by_row, by_column = q.unflatten(1, (-1, side)), q.unflatten(2, (-1, side))
    # on a GPU a copy for each row of blocks: the gradient of one table would be a sum over all pixels in few programs
    copies = [(*x.shape[:1], x.shape[axis]) if q.is_cuda else (1, 1) for x, axis in ((by_row, 1), (by_column, 2))]
    vertical = torch.einsum("bnyxhd,bnyud->bnyxhu", by_row, by_height.expand(*copies[0], -1, -1, -1))
    horizontal = torch.einsum("bynxhd,bnxwd->bynxhw", by_column, by_width.expand(*copies[1], -1, -1, -1))
    return torch.cat([vertical.flatten(1, 2), horizontal.flatten(2, 3)], -1)


def _grid(k: Tensor, block: int) -> tuple[int, int]:
    """Rows and columns of blocks."""
    return k.shape[1] // block, k.shape[2] // block


def _window_places(blocks: int, block: int, halo: int, device: torch.device) -> Tensor:
    """The positions (blocks · win,) on one axis of the padded map that the windows read."""
    starts = torch.arange(0, blocks * block, block, device=device).unsqueeze(1)
    return (starts + torch.arange(block + 2 * halo, device=device)).flatten()


def _read_windows(x: Tensor, block: int, halo: int) -> Tensor:
    """(B, H, W, heads, C) -> (P, win², C), in the dtype of sums."""
    rows, columns = _grid(x, block)
    if not halo:
        return to_regions(x, rows, columns)
    x = F.pad(x.to(sum_dtype(x)), (0, 0, 0, 0, halo, halo, halo, halo))
    x = x.index_select(1, _window_places(rows, block, halo, x.device))
    x = x.index_select(2, _window_places(columns, block, halo, x.device))
    return to_regions(x, rows, columns)


def _add_windows(windows: Tensor, like: Tensor, block: int, halo: int) -> Tensor:
    """The transpose of `_read_windows`: every pixel of a map like `like` sums its copies."""
    (batch, height, width, heads, _), (rows, columns), side = like.shape, _grid(like, block), block + 2 * halo
    x = from_regions(windows, like.new_empty(batch, rows * side, columns * side, heads, 1), rows, columns)
    sums = x.new_zeros(batch, rows * side, width + 2 * halo, *x.shape[3:])
    x = sums.index_add(2, _window_places(columns, block, halo, x.device), x)
    sums = x.new_zeros(batch, height + 2 * halo, *x.shape[2:])
    x = sums.index_add(1, _window_places(rows, block, halo, x.device), x)
    return x[:, halo : halo + height, halo : halo + width].contiguous()


def _apart(blocks: int, block: int, shift: int, like: Tensor) -> Tensor:
    """-100 (blocks, block, block) where two places on one axis of a block come from different ends of the map."""
    place = torch.arange(blocks * block, device=like.device).view(blocks, block)
    wrapped = place >= blocks * block - shift
    return (wrapped.unsqueeze(-1) != wrapped.unsqueeze(-2)).to(like.dtype) * -100


def _weights(
    q: Tensor, k: Tensor, position: Tensor, bias: Tensor, grid: tuple[int, int], block: int, shift: int
) -> tuple[Tensor, Tensor]:
    """Weights and logits (P, Q, win²)."""
    logits, (rows, columns) = q @ k.mT, grid
    if position.shape[-1]:
        vertical, horizontal = position.chunk(2, -1)
        logits = logits + (vertical.unsqueeze(-1) + horizontal.unsqueeze(-2)).flatten(-2)
    if bias.shape[-1]:
        logits = logits.unflatten(0, (-1, len(bias), rows * columns)) + bias.to(logits.dtype).unsqueeze(1)
        logits = logits.flatten(0, 2)
    if shift:
        by_row, by_column = (_apart(blocks, block, shift, logits) for blocks in grid)
        apart = by_row[:, None, :, None, :, None] + by_column[None, :, None, :, None, :]
        apart = apart.reshape(rows * columns, block**2, block**2)
        logits = (logits.unflatten(0, (-1, rows * columns)) + apart).flatten(0, 1)
    return torch.softmax(logits, -1), logits


def halo_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, bias: Tensor, block: int, halo: int, shift: int, scale: float
) -> tuple[Tensor, Tensor]:
    """out, with all windows in memory, and lse (B, Hq, Wq, heads)."""
    rows, columns = _grid(k, block)
    k_windows, v_windows = _read_windows(k, block, halo), _read_windows(v, block, halo)
    place = to_regions(position, rows, columns).to(k_windows.dtype)
    q_blocks = to_regions(q, rows, columns) * scale
    weight, logits = _weights(q_blocks, k_windows, place, bias, (rows, columns), block, shift)
    lse = from_regions(logits.logsumexp(-1, keepdim=True), q, rows, columns).squeeze(-1)
    return from_regions(weight @ v_windows, q, rows, columns).to(v.dtype), lse


def halo_attention_backward_reference(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    block: int,
    halo: int,
    shift: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, columns = _grid(k, block)
    window = block + 2 * halo
    k_windows, v_windows = _read_windows(k, block, halo), _read_windows(v, block, halo)
    g, q_blocks, place, out_blocks = (to_regions(x, rows, columns).to(lse.dtype) for x in (grad, q, position, out))
    weight, _ = _weights(q_blocks * scale, k_windows, place, bias, (rows, columns), block, shift)
    logits_grad = weight * (g @ v_windows.mT - (g * out_blocks).sum(-1, keepdim=True))
    dq = from_regions(logits_grad @ k_windows * scale, q, rows, columns)
    dk = _add_windows(logits_grad.mT @ (q_blocks * scale), k, block, halo)
    dv = _add_windows(weight.mT @ g, v, block, halo)
    dposition, dbias = torch.empty_like(position), torch.empty_like(bias)
    if position.shape[-1]:
        by_place = logits_grad.unflatten(-1, (window, window))
        dposition = from_regions(torch.cat([by_place.sum(-1), by_place.sum(-2)], -1), q, rows, columns)
    if bias.shape[-1]:
        dbias = logits_grad.unflatten(0, (len(q), q.shape[3], rows * columns)).sum((0, 2))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dposition.to(position.dtype), dbias.to(bias.dtype)


# The CPU's path: products of matrices, for as many blocks at a time as have weights that fit a cache.

# weights that are computed together: 1 MB in float32
BLOCK = 1 << 18
# numbers of queries of which all heads are copied at once: 16 MB in float32
COPY = 1 << 22
# fewest queries of a block for which the copy of its window pays off
QUERIES = 16


@compiled(fastmath={"contract", "reassoc"})
def _add_places(logits, position):
    """logits (R, win, win) += position (R, :win) along u and position (R, win:) along w."""
    window = logits.shape[1]
    for r in range(logits.shape[0]):
        for u in range(window):
            vertical = position[r, u]
            for w in range(window):
                logits[r, u, w] += vertical + position[r, window + w]


@compiled(fastmath={"contract", "reassoc"})
def _sum_places(grad, out):
    """The transpose: out (R, :win) = sums of grad (R, win, win) over w, and out (R, win:) over u."""
    window = grad.shape[1]
    for r in range(grad.shape[0]):
        for w in range(window):
            out[r, window + w] = 0
        for u in range(window):
            total = grad.dtype.type(0)
            for w in range(window):
                total += grad[r, u, w]
                out[r, window + w] += grad[r, u, w]
            out[r, u] = total


def _padded(x: Tensor, halo: int) -> Tensor:
    """(B, H, W, heads, C) -> (N, H + 2 halo, W + 2 halo, C), in the dtype of sums."""
    x = x.to(sum_dtype(x)).permute(0, 3, 1, 2, 4).flatten(0, 1)
    return F.pad(x, (0, 0, halo, halo, halo, halo)).contiguous()


def _cropped(x: Tensor, like: Tensor, halo: int) -> Tensor:
    """The inverse of `_padded`, of the shape and dtype of `like`."""
    batch, height, width, heads, _ = like.shape
    x = x[:, halo : halo + height, halo : halo + width].unflatten(0, (batch, heads))
    return x.permute(0, 2, 3, 1, 4).to(like.dtype).contiguous()


def _windows(x_padded: Tensor, block: int, halo: int) -> Tensor:
    """A view (N, rows, columns, win, win, C) of the padded map, in which neighbors overlap."""
    side = block + 2 * halo
    return x_padded.unfold(1, side, block).unfold(2, side, block).permute(0, 1, 2, 4, 5, 3)


def _gathered(windows: Tensor) -> Tensor:
    """A copy (problems, win², C) of some windows."""
    return windows.contiguous().flatten(3, 4).flatten(0, 2)


def _schedule(pairs: int, rows: int, columns: int, queries: int, keys: int) -> list[list[tuple[slice, slice, slice]]]:
    """Turns of the threads, each a list of parts: slices of (image, head), of rows and of columns of blocks.

    A turn has all blocks of some images and heads, so that one thread adds all gradients of a key.
    """
    count = max(1, BLOCK // (max(queries, QUERIES) * keys))  # for tiny blocks the windows dominate
    parts = [
        (y, x)
        for y in slices(0, rows, max(1, min(rows, count // columns)))
        for x in slices(0, columns, min(columns, count))
    ]
    return [[(n, y, x) for y, x in parts] for n in slices(0, pairs, max(1, count // (rows * columns)))]


class _Addends:
    """What the logits of a part are added to: terms of position, bias and, in the last blocks, the mask of a shift."""

    def __init__(
        self, position: Tensor, bias: Tensor, grid: tuple[int, int], block: int, shift: int, dtype: torch.dtype
    ):
        self.place = _blocks(position, *grid, dtype) if position.shape[-1] else None
        self.bias = bias.detach().to(dtype) if bias.shape[-1] else None
        self.grid, self.shape = grid, (block, block)
        # of the last block on an axis: (block, block)
        self.apart = _apart(1, block, shift, torch.empty(0, dtype=dtype))[0] if shift else None

    def heads(self, images_and_heads: slice) -> Tensor:
        """The bias (n, 1, 1, Q, win²) of some (image, head)."""
        assert self.bias is not None
        count = len(self.bias)
        if images_and_heads.stop - images_and_heads.start == 1:
            return self.bias[images_and_heads.start % count][None, None, None]  # a view
        index = torch.arange(images_and_heads.start, images_and_heads.stop) % count
        return self.bias[index][:, None, None]

    def add(self, logits: Tensor, part: tuple[slice, slice, slice]) -> None:
        """Add to logits (problems, Q, win²), in place."""
        n, y, x = part
        if self.place is not None:
            place = _part(self.place, part)
            window = place.shape[-1] // 2
            _add_places(logits.view(-1, window, window).numpy(), place.flatten(0, 1).numpy())
        blocks = logits.view(n.stop - n.start, y.stop - y.start, x.stop - x.start, *logits.shape[1:])
        if self.bias is not None:
            blocks += self.heads(n)
        if self.apart is not None:
            pairs = blocks.unflatten(-1, self.shape).unflatten(3, self.shape)  # ... y x u w
            if y.stop == self.grid[0]:
                pairs[:, -1] += self.apart[:, None, :, None]
            if x.stop == self.grid[1]:
                pairs[:, :, -1] += self.apart[None, :, None, :]


def _blocks(x: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(B, Hq, Wq, heads, C) -> (N, rows, columns, Q, C)."""
    x = to_regions(x.detach(), rows, columns).to(dtype)
    return x.view(len(x) // (rows * columns), rows, columns, *x.shape[1:])


def _part(x: Tensor, part: tuple[slice, slice, slice]) -> Tensor:
    """A view (problems, Q, C) of some of the blocks."""
    return x[part].view(-1, *x.shape[3:])


def _halo_attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, bias: Tensor, block: int, halo: int, shift: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Of large maps so many heads at a time as there are threads: the copies that the products read are large, too."""
    batch, height, width, heads, depth = q.shape
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=sum_dtype(q))  # see halo_attention_op
    step = max(-(-torch.get_num_threads() // max(1, batch)), COPY // max(1, batch * height * width * depth))
    if step >= heads:
        return _some_heads(q, k, v, position, bias, block, halo, shift, scale).to(v.dtype), lse
    out = v.new_empty(*q.shape[:-1], v.shape[-1])
    for some in slices(0, heads, step):
        q_some, k_some, v_some, position_some = (x[..., some, :] for x in (q, k, v, position))
        out[..., some, :] = _some_heads(q_some, k_some, v_some, position_some, bias[some], block, halo, shift, scale)
    return out, lse


def _some_heads(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, bias: Tensor, block: int, halo: int, shift: int, scale: float
) -> Tensor:
    (rows, columns), dtype = _grid(k, block), sum_dtype(q)
    q_blocks, addends = (
        _blocks(q, rows, columns, dtype) * scale,
        _Addends(position, bias, (rows, columns), block, shift, dtype),
    )
    k_windows, v_windows = (_windows(_padded(x, halo), block, halo) for x in (k, v))
    out = q_blocks.new_empty(*q_blocks.shape[:-1], v.shape[-1])

    def work(turn: list) -> None:
        for part in turn:
            logits = torch.bmm(_part(q_blocks, part), _gathered(k_windows[part]).mT)
            addends.add(logits, part)
            weight = torch.softmax(logits, -1)
            torch.bmm(weight, _gathered(v_windows[part]), out=_part(out, part))

    each(work, _schedule(len(out), rows, columns, out.shape[3], (block + 2 * halo) ** 2))
    return from_regions(out, q, rows, columns)


def _halo_attention_backward_cpu(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    block: int,
    halo: int,
    shift: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (rows, columns), window = _grid(k, block), block + 2 * halo
    g_blocks, q_blocks, out_blocks = (_blocks(x, rows, columns, lse.dtype) for x in (grad, q, out))
    addends = _Addends(position, bias, (rows, columns), block, shift, lse.dtype)
    q_blocks = q_blocks * scale
    delta = (g_blocks * out_blocks).sum(-1, keepdim=True)
    k_padded, v_padded = _padded(k, halo), _padded(v, halo)
    k_windows, v_windows = _windows(k_padded, block, halo), _windows(v_padded, block, halo)
    dq, dplace = torch.empty_like(q_blocks), None if addends.place is None else torch.empty_like(addends.place)
    # of each image by itself, so that no two threads add to the same sum
    dbias = None if addends.bias is None else q_blocks.new_zeros(len(q_blocks), *bias.shape[1:])
    dk_padded, dv_padded = torch.zeros_like(k_padded), torch.zeros_like(v_padded)
    dk_windows, dv_windows = _windows(dk_padded, block, halo), _windows(dv_padded, block, halo)
    apart = -(-window // block)  # windows at this distance in blocks do not overlap, and are added together

    def add(windows: Tensor, values: Tensor) -> None:
        values = values.view(windows.shape)
        for y in range(min(apart, windows.shape[1])):
            for x in range(min(apart, windows.shape[2])):
                windows[:, y::apart, x::apart].add_(values[:, y::apart, x::apart])

    def work(turn: list) -> None:
        for part in turn:
            g, q_part, delta_part = (_part(x, part) for x in (g_blocks, q_blocks, delta))
            k_part, v_part = _gathered(k_windows[part]), _gathered(v_windows[part])
            logits = torch.bmm(q_part, k_part.mT)
            addends.add(logits, part)
            weight = torch.softmax(logits, -1)
            add(dv_windows[part], torch.bmm(weight.mT, g))
            logits_grad = torch.bmm(g, v_part.mT, out=logits).sub_(delta_part).mul_(weight)
            torch.bmm(logits_grad, k_part, out=_part(dq, part))
            add(dk_windows[part], torch.bmm(logits_grad.mT, q_part))
            if dplace is not None:
                _sum_places(logits_grad.view(-1, window, window).numpy(), _part(dplace, part).flatten(0, 1).numpy())
            if dbias is not None:
                dbias[part[0]] += logits_grad.view(*k_windows[part].shape[:3], *bias.shape[1:]).sum((1, 2))

    each(work, _schedule(len(dq), rows, columns, dq.shape[3], window**2))
    dq *= scale
    return (
        from_regions(dq, q, rows, columns).to(q.dtype),
        _cropped(dk_padded, k, halo),
        _cropped(dv_padded, v, halo),
        torch.empty_like(position) if dplace is None else from_regions(dplace, q, rows, columns).to(position.dtype),
        torch.empty_like(bias) if dbias is None else dbias.unflatten(0, (len(q), len(bias))).sum(0).to(bias.dtype),
    )


# Triton: a program takes a window row by row, so that the term of w is one tile for all rows, and that of u a column.
# For win <= 16, two or four rows at a time would give larger products.


@triton.jit
def apart(region, query, y, x, rows, columns, block, SHIFT: tl.constexpr, SUM: tl.constexpr):
    """-100 (queries, keys) for each axis on which a query of a block and a key at (y, x) come from different ends."""
    low, right = rows * block - SHIFT, columns * block - SHIFT
    query_low = (region // columns * block + query // block >= low).to(SUM)
    query_right = (region % columns * block + query % block >= right).to(SUM)
    by_row = tl.abs(query_low[:, None] - (y >= low).to(SUM)[None, :])
    return (by_row + tl.abs(query_right[:, None] - (x >= right).to(SUM)[None, :])) * -100


@triton.jit(do_not_specialize=["heads", "rows", "columns"])
def halo_attention_fwd_kernel(
    q, k, v, position, bias, scale, out, lse, heads, rows, columns, side, block, halo, width, channels,
    POSITION: tl.constexpr, BIAS: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out and lse of some queries of a block, with a running softmax over the rows of its window."""
    problem = tl.program_id(0).to(tl.int64)
    head, region, image = problem % heads, problem // heads % (rows * columns), problem // heads // (rows * columns)
    d, c, w = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_W)
    factor, window = tl.load(scale), block + 2 * halo
    query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = query < side * side
    row = region_rows(image, region, query, head, heads, rows * columns, columns, side, side)
    q_tile = load_rows(q, row, d, inside, width)
    place, mask = position + row * (2 * window), inside[:, None] & (w < window)[None, :]
    if POSITION:
        horizontal = tl.load(place[:, None] + window + w[None, :], mask=mask, other=0.0).to(factor.dtype)
    x = region % columns * block - halo + w
    on_map = (x >= 0) & (x < columns * block) & (w < window)
    top = tl.full((BLOCK_Q,), float("-inf"), factor.dtype)
    norm = tl.zeros((BLOCK_Q,), factor.dtype)
    total = tl.zeros((BLOCK_Q, BLOCK_C), factor.dtype)
    for u in range(window):
        y = region // columns * block - halo + u + tl.zeros_like(x)  # a tile like x: their masks are combined
        key_row = ((image * rows * block + y) * (columns * block) + x) * heads + head
        key = on_map & (y >= 0) & (y < rows * block)
        k_tile = load_rows(k, key_row, d, key, width)
        logits = dot(q_tile, tl.trans(k_tile), factor.dtype) * factor
        if POSITION:
            logits += tl.load(place + u, mask=inside, other=0.0).to(factor.dtype)[:, None] + horizontal
        if BIAS:
            pair = bias + ((head * side * side + query) * window + u)[:, None] * window + w[None, :]
            logits += tl.load(pair, mask=mask, other=0.0).to(factor.dtype)
        if SHIFT:
            logits += apart(region, query, y, x, rows, columns, block, SHIFT, factor.dtype)
        logits = tl.where((w < window)[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        weight, decay = tl.exp(logits - new_top[:, None]), tl.exp(top - new_top)
        norm = norm * decay + tl.sum(weight, 1)
        total = total * decay[:, None] + dot(weight, load_rows(v, key_row, c, key, channels), factor.dtype)
        top = new_top
    store_rows(out, total / norm[:, None], row, c, inside, channels)
    tl.store(lse + row, top + tl.log(norm), mask=inside)


@triton.jit(do_not_specialize=["heads", "rows", "columns"])
def halo_attention_bwd_q_kernel(
    g, q, k, v, position, bias, scale, lse, delta, dq, dposition, dbias,
    heads, rows, columns, side, block, halo, width, channels,
    POSITION: tl.constexpr, BIAS: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂q and ∂position of some queries of a block."""
    problem = tl.program_id(0).to(tl.int64)
    head, region, image = problem % heads, problem // heads % (rows * columns), problem // heads // (rows * columns)
    d, c, w = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_W)
    factor, window = tl.load(scale), block + 2 * halo
    query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = query < side * side
    row = region_rows(image, region, query, head, heads, rows * columns, columns, side, side)
    q_tile = load_rows(q, row, d, inside, width)
    g_tile = load_rows(g, row, c, inside, channels)
    norm = tl.load(lse + row, mask=inside, other=0.0)
    mean = tl.load(delta + row, mask=inside, other=0.0)
    place, mask = row * (2 * window), inside[:, None] & (w < window)[None, :]
    if POSITION:
        horizontal = tl.load(position + place[:, None] + window + w[None, :], mask=mask, other=0.0).to(factor.dtype)
    x = region % columns * block - halo + w
    on_map = (x >= 0) & (x < columns * block) & (w < window)
    total = tl.zeros((BLOCK_Q, BLOCK_D), factor.dtype)
    by_column = tl.zeros((BLOCK_Q, BLOCK_W), factor.dtype)
    for u in range(window):
        y = region // columns * block - halo + u + tl.zeros_like(x)  # a tile like x: their masks are combined
        key_row = ((image * rows * block + y) * (columns * block) + x) * heads + head
        key = on_map & (y >= 0) & (y < rows * block)
        k_tile = load_rows(k, key_row, d, key, width)
        v_tile = load_rows(v, key_row, c, key, channels)
        pair = ((head * side * side + query) * window + u)[:, None] * window + w[None, :]
        logits = dot(q_tile, tl.trans(k_tile), factor.dtype) * factor
        if POSITION:
            logits += tl.load(position + place + u, mask=inside, other=0.0).to(factor.dtype)[:, None] + horizontal
        if BIAS:
            logits += tl.load(bias + pair, mask=mask, other=0.0).to(factor.dtype)
        if SHIFT:
            logits += apart(region, query, y, x, rows, columns, block, SHIFT, factor.dtype)
        weight = tl.where(mask, tl.exp(logits - norm[:, None]), 0.0)
        grad = weight * (dot(g_tile, tl.trans(v_tile), factor.dtype) - mean[:, None])
        total += dot(grad, k_tile, factor.dtype)
        if POSITION:
            by_column += grad
            tl.store(dposition + place + u, tl.sum(grad, 1).to(dposition.dtype.element_ty), mask=inside)
        if BIAS:
            tl.atomic_add(dbias + pair, grad, mask=mask)
    store_rows(dq, total * factor, row, d, inside, width)
    if POSITION:
        out = dposition + place[:, None] + window + w[None, :]
        tl.store(out, by_column.to(dposition.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["heads", "rows", "columns"])
def halo_attention_bwd_kv_kernel(
    g, q, k, v, position, bias, scale, lse, delta, dk, dv, heads, rows, columns, side, block, halo, width, channels,
    POSITION: tl.constexpr, BIAS: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂k and ∂v of some pixels of a block, from all blocks whose windows reach it."""
    problem = tl.program_id(0).to(tl.int64)
    head, region, image = problem % heads, problem // heads % (rows * columns), problem // heads // (rows * columns)
    d, c, p = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_P)
    factor, window = tl.load(scale), block + 2 * halo
    key = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)
    key_inside = key < block * block
    key_row = region_rows(image, region, key, head, heads, rows * columns, columns, block, block)
    k_tile = load_rows(k, key_row, d, key_inside, width)
    v_tile = load_rows(v, key_row, c, key_inside, channels)
    total_k = tl.zeros((BLOCK_X, BLOCK_D), factor.dtype)
    total_v = tl.zeros((BLOCK_X, BLOCK_C), factor.dtype)
    top, left = region // columns * block, region % columns * block
    for block_y in range(tl.maximum(top - halo, 0) // block, tl.minimum((top + block - 1 + halo) // block + 1, rows)):
        u = top + key // block - block_y * block + halo
        for block_x in range(
            tl.maximum(left - halo, 0) // block, tl.minimum((left + block - 1 + halo) // block + 1, columns)
        ):
            w = left + key % block - block_x * block + halo
            in_window = key_inside & (u >= 0) & (u < window) & (w >= 0) & (w < window)
            # a product selects both terms of position: gathering them for every pair would take most of the time
            chosen = (p[None, :] == u[:, None]) | (p[None, :] == window + w[:, None])
            for start in range(0, side * side, BLOCK_Q):
                query = start + tl.arange(0, BLOCK_Q)
                inside = query < side * side
                other = block_y * columns + block_x
                row = region_rows(image, other, query, head, heads, rows * columns, columns, side, side)
                q_tile = load_rows(q, row, d, inside, width)
                g_tile = load_rows(g, row, c, inside, channels)
                norm = tl.load(lse + row, mask=inside, other=0.0)
                mean = tl.load(delta + row, mask=inside, other=0.0)
                logits = dot(k_tile, tl.trans(q_tile), factor.dtype) * factor
                mask = in_window[:, None] & inside[None, :]
                if POSITION:
                    places = load_rows(position, row, p, inside, 2 * window)
                    logits += dot(chosen, tl.trans(places), factor.dtype)
                if BIAS:
                    pair = bias + ((head * side * side + query) * window)[None, :] * window + (u * window + w)[:, None]
                    logits += tl.load(pair, mask=mask, other=0.0).to(factor.dtype)
                if SHIFT:
                    y, x = top + key // block, left + key % block
                    logits += tl.trans(apart(other, query, y, x, rows, columns, block, SHIFT, factor.dtype))
                weight = tl.where(mask, tl.exp(logits - norm[None, :]), 0.0)
                grad = weight * (dot(v_tile, tl.trans(g_tile), factor.dtype) - mean[None, :])
                total_v += dot(weight, g_tile, factor.dtype)
                total_k += dot(grad, q_tile, factor.dtype)
    store_rows(dk, total_k * factor, key_row, d, key_inside, width)
    store_rows(dv, total_v, key_row, c, key_inside, channels)


def _launch(
    kernel, q: Tensor, v: Tensor, block: int, halo: int, grid: tuple[int, ...], tiles: dict, *arguments, num_warps=2
) -> None:
    """Launch `kernel` over `grid` x heads."""
    (rows, columns), heads, channels = _grid(v, block), q.shape[3], v.shape[-1]
    if not q.numel():
        return
    with torch.cuda.device_of(q):
        kernel[(grid[0] * heads, *grid[1:])](
            *arguments, heads, rows, columns, q.shape[1] // rows, block, halo, q.shape[-1], channels,
            BLOCK_D=tile_of(q.shape[-1]), BLOCK_C=tile_of(channels), num_warps=num_warps, **tiles,
        )  # fmt: skip


def _query_tiles(q: Tensor, k: Tensor, block: int, halo: int) -> tuple[tuple[int, int], dict]:
    """Grid (blocks, tiles of queries), and the tiles."""
    rows, columns = _grid(k, block)
    queries = (q.shape[1] // rows) ** 2
    tile = tile_of(queries, 64)
    tiles = {"BLOCK_Q": tile, "BLOCK_W": tile_of(block + 2 * halo)}
    return (len(q) * rows * columns, triton.cdiv(queries, tile)), tiles


def _terms(position: Tensor, bias: Tensor, shift: int) -> dict:
    """Which terms the logits have."""
    return {"POSITION": position.shape[-1] > 0, "BIAS": bias.shape[-1] > 0, "SHIFT": shift}


def _halo_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, bias: Tensor, block: int, halo: int, shift: int, scale: float
) -> tuple[Tensor, Tensor]:
    factor = torch.full((1,), scale, dtype=sum_dtype(q), device=q.device)  # a tensor, as numbers are passed in float32
    out, lse = v.new_empty(*q.shape[:-1], v.shape[-1]), factor.new_empty(q.shape[:-1])
    terms = _terms(position, bias, shift)
    q, k, v, position, bias = operands(q, k, v, position, bias)
    grid, tiles = _query_tiles(q, k, block, halo)
    inputs = q, k, v, position, bias, factor
    _launch(halo_attention_fwd_kernel, q, v, block, halo, grid, tiles | terms, *inputs, out, lse)
    return out, lse


def _halo_attention_backward_triton(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    block: int,
    halo: int,
    shift: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    factor = torch.full((1,), scale, dtype=lse.dtype, device=q.device)
    dq, dk, dv, dposition = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, position))
    dbias, bias_dtype = lse.new_zeros(bias.shape), bias.dtype
    delta = (grad.to(lse.dtype) * out).sum(-1)
    terms = _terms(position, bias, shift)
    g, q, k, v, position, bias = operands(grad, q, k, v, position, bias)
    inputs = g, q, k, v, position, bias, factor, lse, delta
    grid, tiles = _query_tiles(q, k, block, halo)
    _launch(halo_attention_bwd_q_kernel, q, v, block, halo, grid, tiles | terms, *inputs, dq, dposition, dbias)
    rows, columns = _grid(k, block)
    grid = len(k) * rows * columns, triton.cdiv(block**2, 16)
    tiles = {"BLOCK_Q": 16, "BLOCK_X": 16, "BLOCK_P": tile_of(2 * (block + 2 * halo))}  # larger ones spill in float32
    _launch(halo_attention_bwd_kv_kernel, q, v, block, halo, grid, tiles | terms, *inputs, dk, dv, num_warps=1)
    return dq, dk, dv, dposition, dbias.to(bias_dtype)


@torch.library.custom_op("attlas::halo_attention", mutates_args=())
def halo_attention_op(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, bias: Tensor, block: int, halo: int, shift: int, scale: float
) -> tuple[Tensor, Tensor]:
    """out (B, Hq, Wq, heads, C), and lse (B, Hq, Wq, heads) for the backward of the same path.

    On a CPU lse is -inf, as the backward there computes the softmax again: forward and backward must take the same
    path (ATTLAS_KERNELS must not change in between).
    """
    run = pick(q, reference=halo_attention_reference, triton=_halo_attention_triton, cpu=_halo_attention_cpu)
    return run(q, k, v, position, bias, block, halo, shift, scale)


@halo_attention_op.register_fake
def _(q, k, v, position, bias, block, halo, shift, scale):
    return v.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=sum_dtype(q))


@torch.library.custom_op("attlas::halo_attention_backward", mutates_args=())
def halo_attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    block: int,
    halo: int,
    shift: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = pick(
        q,
        reference=halo_attention_backward_reference,
        triton=_halo_attention_backward_triton,
        cpu=_halo_attention_backward_cpu,
    )
    return run(grad, q, k, v, position, bias, out, lse, block, halo, shift, scale)


@halo_attention_backward_op.register_fake
def _(grad, q, k, v, position, bias, out, lse, block, halo, shift, scale):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, position, bias))


def _save(ctx, inputs, output):
    q, k, v, position, bias, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, position, bias, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return *halo_attention_backward_op(grad, *ctx.saved_tensors, *ctx.numbers), *[None] * 4


halo_attention_op.register_autograd(_backward, setup_context=_save)
decompose(halo_attention_op, halo_attention_reference)
