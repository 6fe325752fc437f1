"""Deformable convolution, with a mask (DCNv2) or without (DCNv1): every tap of a pixel reads where an offset moves it.

    out[b, o, p] = bias[o] + Σ_{c, k} weight[o, c, k] · mask[b, g, k, p] · x[b, c](place(p, k) + offset[b, g, k, p])
    place(p, k) = p · stride - padding + k · dilation

over the taps k = (i, j) of a kernel of K = kh · kw taps, and the channels c of the group of o. The G offset groups are
runs of C / G channels. x is read by bilinear interpolation, and is zero outside the map. A place at -1 or less, at the
height or width or more, or not a number, is outside: it reads 0, and its offset has no gradient. Between pixels the
gradient of an offset is that of the interpolation; on a pixel it is that to the side of higher coordinates.

Columns, the K · C numbers that each output pixel reads, exist for a block of pixels only: for 256 of them and 64
channels on a CPU, for `COLUMNS` numbers on a GPU. Suffixes of names: P = H' · W' output pixels, R those of a block.

Source: DCN, arXiv 1703.06211, and DCNv2, arXiv 1811.11168.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .checks import check_floats, check_integer, sum_dtype
from .dispatch import compiled, decompose, each, pick, slices, tl, triton
from .tiles import rows_by_channels, triton_dtype


def deformable_convolution(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution whose taps are moved by offsets; differentiable in all tensors.

    All tensors may have any floating-point dtype; half types are summed in float32. Channels-last maps are fastest.

    Args:
        x: map (B, C, H, W).
        offset: moves of the taps in pixels (B, 2 G K, H', W'), for G offset groups, for K taps in row-major order: y,
            then x. G divides C.
        weight: kernels (O, C / groups, kh, kw).
        bias: numbers to add (O), or None.
        mask: factors of the taps (B, G K, H', W'), or None for ones.
        stride: steps between output pixels, one number or (rows, columns).
        padding: zeros around the map, one number or (rows, columns).
        dilation: steps between taps, one number or (rows, columns).
        groups: number of groups of channels that are convolved apart; divides C and O.

    Returns:
        (B, O, H', W') in the dtype of x, H' = ⌊(H + 2 padding - dilation (kh - 1) - 1) / stride⌋ + 1, and so W'.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    given = {name: tensor for name, tensor in (("bias", bias), ("mask", mask)) if tensor is not None}
    check_floats(x=x, offset=offset, weight=weight, **given)
    steps = [_pair(stride, "stride", 1), _pair(padding, "padding", 0), _pair(dilation, "dilation", 1)]
    check_integer(groups, "groups")
    _check_shapes(x, offset, weight, bias, mask, groups, *steps)
    return deformable_convolution_op(x, offset, weight, bias, mask, *steps, groups)


def _pair(value: int | Sequence[int], name: str, at_least: int) -> list[int]:
    """Numbers for rows and columns. Places stay below 2^24, so that float32 holds them."""
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(pair) != 2:
        raise ValueError(f"{name} must be one integer, or one for rows and one for columns, got {value!r:.60}")
    for number in pair:
        check_integer(number, name, at_least, 2**20)
    return pair


def _check_shapes(x, offset, weight, bias, mask, groups, stride, padding, dilation) -> None:
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must have shape (B, C, H, W) with C, H, W of at least 1, got {tuple(x.shape)}")
    channels = x.shape[1]
    if channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups}")
    if weight.ndim != 4 or 0 in weight.shape or weight.shape[1] != channels // groups or weight.shape[0] % groups:
        raise ValueError(
            f"weight must have shape (O, {channels // groups}, kh, kw), where {groups} groups divide O, for x of "
            f"{channels} channels, got {tuple(weight.shape)}"
        )
    size = _output_size(x, weight, stride, padding, dilation)
    if min(size) < 1:
        raise ValueError(
            f"x must be as large as the kernel: the output would be of {size[0]} x {size[1]} pixels, for a map of "
            f"{x.shape[2]} x {x.shape[3]}, a kernel of {weight.shape[2]} x {weight.shape[3]}, stride {stride}, "
            f"padding {padding} and dilation {dilation}"
        )
    taps = weight.shape[2] * weight.shape[3]
    fits = offset.ndim == 4 and offset.shape[1] and offset.shape[1] % (2 * taps) == 0
    if not fits or (offset.shape[0], *offset.shape[2:]) != (x.shape[0], *size):
        raise ValueError(
            f"offset must have shape (B, 2 G K, H', W') with B = {x.shape[0]}, K = {taps} and H', W' = {size[0]}, "
            f"{size[1]}, got {tuple(offset.shape)}"
        )
    offset_groups = offset.shape[1] // (2 * taps)
    if channels % offset_groups:
        raise ValueError(
            f"offset must have 2 G K channels where G divides the {channels} channels of x, got {offset.shape[1]} "
            f"channels, so G = {offset_groups}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},) of weight, got {tuple(bias.shape)}")
    if mask is not None and mask.shape != (x.shape[0], offset_groups * taps, *size):
        raise ValueError(
            f"mask must have shape {(x.shape[0], offset_groups * taps, *size)}, half the channels of offset, got "
            f"{tuple(mask.shape)}"
        )


def _output_size(x: Tensor, weight: Tensor, stride, padding, dilation) -> tuple[int, int]:
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return height, width


def _wide(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of sums."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = dtype if tensor is None else torch.promote_types(dtype, sum_dtype(tensor))
    return dtype


def _moves(offset: Tensor, mask: Tensor | None, taps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Offsets (B, G, K, 2, P) and factors (B, G, K, P), contiguous."""
    moves = offset.to(dtype).unflatten(1, (-1, taps, 2)).flatten(4).contiguous()
    if mask is None:
        return moves, torch.ones_like(moves[:, :, :, 0], memory_format=torch.contiguous_format)
    return moves, mask.to(dtype).unflatten(1, (-1, taps)).flatten(3).contiguous()


def _corners(maps: Tensor, weight: Tensor, offset: Tensor, wide: torch.dtype, stride, padding, dilation) -> Iterator:
    """Of the four pixels around each place: number in the map, share, and the share's slopes along y and x.

    All are (B, G, 1, K P); shares and slopes of pixels outside the map are zero, and their numbers 0.
    """
    lengths, kernel, device = maps.shape[2:], weight.shape[2:], maps.device
    moves = offset.to(wide).unflatten(1, (-1, *kernel, 2))  # B G kh kw 2 H' W'
    rows, columns = (
        torch.arange(kernel[i], device=device).unsqueeze(1) * dilation[i]
        + torch.arange(offset.shape[2 + i], device=device) * stride[i]
        - padding[i]
        for i in (0, 1)
    )
    y = (rows.to(wide)[:, None, :, None] + moves[:, :, :, :, 0]).flatten(2).unsqueeze(2)
    x = (columns.to(wide)[None, :, None, :] + moves[:, :, :, :, 1]).flatten(2).unsqueeze(2)
    seen = (y > -1) & (y < lengths[0]) & (x > -1) & (x < lengths[1])
    y, x = y.where(seen, 0), x.where(seen, 0)
    top, left = y.floor(), x.floor()
    for i, j in itertools.product((0, 1), (0, 1)):
        row, column = top.long() + i, left.long() + j
        inside = seen & (row >= 0) & (row < lengths[0]) & (column >= 0) & (column < lengths[1])
        high, wide_ = (y - top if i else 1 - (y - top)), (x - left if j else 1 - (x - left))
        shares = high * wide_, (wide_ if i else -wide_), (high if j else -high)
        yield (row * lengths[1] + column).where(inside, 0), inside, *(share.where(inside, 0) for share in shares)


def _read(maps: Tensor, number: Tensor, inside: Tensor) -> Tensor:
    """(B, G, c, HW) at (B, G, 1, K P) -> (B, G, c, K P), zero outside the map."""
    return maps.gather(3, number.expand(-1, -1, maps.shape[2], -1)).where(inside, 0)


def _factors(offset: Tensor, mask: Tensor | None, taps: int, wide: torch.dtype) -> Tensor:
    """The mask as (B, G, 1, K P)."""
    return _moves(offset, mask, taps, wide)[1].flatten(2).unsqueeze(2)


def _columns_reference(x, offset, weight, mask, stride, padding, dilation, wide) -> Tensor:
    """What every tap reads, (B, G, c, K P)."""
    taps = weight.shape[2] * weight.shape[3]
    factors = _factors(offset, mask, taps, wide)
    maps = x.to(wide).flatten(2).unflatten(1, (factors.shape[1], -1))
    columns = 0
    for number, inside, share, _, _ in _corners(x, weight, offset, wide, stride, padding, dilation):
        columns = columns + share * _read(maps, number, inside)
    return columns * factors


def deformable_convolution_reference(x, offset, weight, bias, mask, stride, padding, dilation, groups) -> Tensor:
    wide = _wide(x, offset, weight, bias, mask)
    columns = _columns_reference(x, offset, weight, mask, stride, padding, dilation, wide)
    taps = weight.shape[2] * weight.shape[3]
    columns = columns.flatten(1, 2).unflatten(1, (groups, -1)).unflatten(3, (taps, -1)).flatten(2, 3)
    out = weight.to(wide).unflatten(0, (groups, -1)).flatten(2) @ columns
    out = out.flatten(1, 2).unflatten(2, offset.shape[2:])
    return (out if bias is None else out + bias.to(wide)[:, None, None]).to(x.dtype)


def deformable_convolution_backward_reference(
    grad, x, offset, weight, mask, stride, padding, dilation, groups
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, offset and mask; the last is empty where mask is None."""
    wide, taps = _wide(x, offset, weight, mask), weight.shape[2] * weight.shape[3]
    grad = grad.to(wide).flatten(2).unflatten(1, (groups, -1))
    factors = _factors(offset, mask, taps, wide)
    maps = x.to(wide).flatten(2).unflatten(1, (factors.shape[1], -1))
    columns = weight.to(wide).unflatten(0, (groups, -1)).flatten(2).mT @ grad  # B groups Cg K P
    columns = columns.unflatten(2, (-1, taps)).flatten(3).flatten(1, 2).unflatten(1, (factors.shape[1], -1))
    grad_maps, along = torch.zeros_like(maps), []
    for number, inside, *shares in _corners(x, weight, offset, wide, stride, padding, dilation):
        product = (columns * _read(maps, number, inside)).sum(2, keepdim=True)
        along.append([share * product for share in shares])
        value = (columns * (shares[0] * factors)).where(inside, 0)
        grad_maps.scatter_add_(3, number.expand_as(value), value)
    grad_mask, *grad_moves = (sum(parts[1:], parts[0]) for parts in zip(*along))
    grad_offset = torch.stack([(part * factors).squeeze(2) for part in grad_moves], 2)  # B G 2 K P
    grad_offset = grad_offset.unflatten(3, (taps, -1)).transpose(2, 3).reshape(offset.shape).contiguous()
    return (
        grad_maps.reshape(x.shape).to(x.dtype),
        grad_offset.to(offset.dtype),
        x.new_empty(0) if mask is None else grad_mask.reshape(mask.shape).to(mask.dtype),
    )


def deformable_convolution_weight_backward_reference(
    grad, x, offset, weight, mask, stride, padding, dilation, groups
) -> Tensor:
    """The gradient of weight, of which only shape and dtype count."""
    wide, taps = _wide(x, offset, weight, mask), weight.shape[2] * weight.shape[3]
    columns = _columns_reference(x, offset, weight, mask, stride, padding, dilation, wide)
    columns = columns.flatten(1, 2).unflatten(1, (groups, -1)).unflatten(3, (taps, -1)).flatten(2, 3)
    grad = grad.to(wide).flatten(2).unflatten(1, (groups, -1))
    return (grad @ columns.mT).sum(0).reshape(weight.shape).to(weight.dtype)


# The CPU's path. Maps are rows of channels (channels-last), so that a tap reads four runs of numbers. The work is cut
# into blocks of `ROWS` pixels and pieces of up to `CHANNELS` channels, which share an offset group and a group of the
# convolution: the columns of one fit the cache, where a product of matrices follows at once.

ROWS, CHANNELS = 256, 64
# Threads write gradients of offsets apart, for at most this many runs of pieces of an offset group.
RUNS = 4


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), contiguous."""
    return x.flatten(2).mT.to(dtype).contiguous()


def _from_rows(rows: Tensor, like: Tensor, size: Sequence[int]) -> Tensor:
    """(B, P, C) -> (B, C, *size), in the dtype of `like`."""
    return rows.mT.to(like.dtype).contiguous().unflatten(2, size)


class _Pieces:
    """The pieces of channels of a convolution, and the parts of tensors that belong to each."""

    def __init__(self, x: Tensor, offset: Tensor, weight: Tensor, groups: int):
        channels = x.shape[1]
        self.taps = weight.shape[2] * weight.shape[3]
        self.depth, self.outputs = channels // groups, weight.shape[0] // groups
        self.of_offsets = channels // (offset.shape[1] // (2 * self.taps))
        edges = sorted({*range(0, channels, self.depth), *range(0, channels, self.of_offsets), channels})
        self.channels = [part for a, b in itertools.pairwise(edges) for part in slices(a, b, CHANNELS)]

    def group(self, piece: slice) -> slice:
        """Its outputs."""
        first = piece.start // self.depth * self.outputs
        return slice(first, first + self.outputs)

    def offset_group(self, piece: slice) -> int:
        return piece.start // self.of_offsets

    def weight(self, weight: Tensor, piece: slice) -> Tensor:
        """A view (O / groups, c, K) of the kernels."""
        first = piece.start // self.depth * self.depth
        return weight[self.group(piece), piece.start - first : piece.stop - first].flatten(2)

    def runs(self) -> list[tuple[int, list[slice]]]:
        """Pieces of one offset group, cut into `RUNS` at most: the number of the run there, and its pieces."""
        found = []
        for _, pieces in itertools.groupby(self.channels, self.offset_group):
            listed = list(pieces)
            parts = slices(0, len(listed), math.ceil(len(listed) / RUNS))
            found += [(number, listed[part]) for number, part in enumerate(parts)]
        return found


def _geometry(x: Tensor, offset: Tensor, weight: Tensor, stride, padding, dilation) -> tuple[int, ...]:
    return *x.shape[2:], offset.shape[3], weight.shape[3], *stride, *padding, *dilation


@compiled
def _place(offset, tap, pixel, geometry):
    """The place that a tap of an output pixel reads, and whether it lies in the map."""
    height, width, out_width, kernel_width, down, right, above, left, apart, aside = geometry
    kind = offset.dtype.type
    y = offset[tap, 0, pixel] + kind(pixel // out_width * down - above + tap // kernel_width * apart)
    x = offset[tap, 1, pixel] + kind(pixel % out_width * right - left + tap % kernel_width * aside)
    return y, x, y > -1 and y < height and x > -1 and x < width


@compiled
def _corner(corner, y, x, height, width):
    """Number in the map, or -1 outside it, share, and the share's slopes of one of the four pixels around a place."""
    row, column = math.floor(y), math.floor(x)
    down, right = y - math.floor(y), x - math.floor(x)
    slope_y, slope_x = -1, -1
    if corner >= 2:
        row, slope_y = row + 1, 1
    else:
        down = 1 - down
    if corner % 2:
        column, slope_x = column + 1, 1
    else:
        right = 1 - right
    if row < 0 or row >= height or column < 0 or column >= width:
        return -1, down * right, right, down
    return row * width + column, down * right, slope_y * right, slope_x * down


@compiled(fastmath={"contract"})
def _sample(x, offset, mask, columns, geometry, pixel, channel):
    """Write the columns (R, K, c) of the pixels from `pixel` and the channels from `channel` on."""
    height, width = geometry[:2]
    kind = x.dtype.type
    for r in range(columns.shape[0]):
        for tap in range(columns.shape[1]):
            y, z, seen = _place(offset, tap, pixel + r, geometry)
            factor = mask[tap, pixel + r]
            if seen and y >= 0 and y < height - 1 and z >= 0 and z < width - 1:
                n, share, _, _ = _corner(0, y, z, height, width)
                s0 = kind(share) * factor
                s1 = kind(_corner(1, y, z, height, width)[1]) * factor
                s2 = kind(_corner(2, y, z, height, width)[1]) * factor
                s3 = kind(_corner(3, y, z, height, width)[1]) * factor
                m = n + width
                for c in range(columns.shape[2]):
                    at = channel + c
                    columns[r, tap, c] = s0 * x[n, at] + s1 * x[n + 1, at] + s2 * x[m, at] + s3 * x[m + 1, at]
                continue
            columns[r, tap] = factor * kind(0)
            if seen:
                for corner in range(4):
                    n, share, _, _ = _corner(corner, y, z, height, width)
                    if n >= 0:
                        s = kind(share) * factor
                        for c in range(columns.shape[2]):
                            columns[r, tap, c] += s * x[n, channel + c]


@compiled(fastmath={"contract", "reassoc", "nsz"})  # for vector instructions in the sum over channels
def _spread_corner(x, columns, grad_x, share):
    """Add the gradient of a column to a pixel that it was read from; their product."""
    total = x.dtype.type(0)
    for c in range(len(x)):
        grad_x[c] += share * columns[c]
        total += columns[c] * x[c]
    return total


@compiled
def _spread(x, offset, mask, columns, grad_x, grad_offset, grad_mask, geometry, pixel, channel):
    """Add what gradients of columns (R, K, c) give to the gradients of x, offset and mask."""
    height, width = geometry[:2]
    kind = x.dtype.type
    last = channel + columns.shape[2]
    for r in range(columns.shape[0]):
        p = pixel + r
        for tap in range(columns.shape[1]):
            y, z, seen = _place(offset, tap, p, geometry)
            if not seen:
                continue
            factor = mask[tap, p]
            for corner in range(4):
                n, share, slope_y, slope_x = _corner(corner, y, z, height, width)
                if n >= 0:
                    product = _spread_corner(
                        x[n, channel:last], columns[r, tap], grad_x[n, channel:last], kind(share) * factor
                    )
                    grad_mask[tap, p] += kind(share) * product
                    grad_offset[tap, 0, p] += kind(slope_y) * factor * product
                    grad_offset[tap, 1, p] += kind(slope_x) * factor * product


def _deformable_convolution_cpu(x, offset, weight, bias, mask, stride, padding, dilation, groups) -> Tensor:
    wide = _wide(x, offset, weight, bias, mask)
    geometry, pieces = _geometry(x, offset, weight, stride, padding, dilation), _Pieces(x, offset, weight, groups)
    maps, (moves, factors) = _rows(x, wide), _moves(offset, mask, pieces.taps, wide)
    parts = [pieces.weight(weight, piece).permute(2, 1, 0).to(wide).flatten(0, 1) for piece in pieces.channels]
    out = maps.new_empty(len(x), moves.shape[-1], len(weight))

    def one(item: tuple[int, slice]) -> None:
        image, block = item
        rows = out[image, block].zero_() if bias is None else out[image, block].copy_(bias)
        for piece, part in zip(pieces.channels, parts):
            columns = _columns(maps, moves, factors, geometry, pieces, image, block, piece)
            rows[:, pieces.group(piece)].addmm_(columns, part)

    each(one, [(b, block) for b in range(len(x)) for block in slices(0, moves.shape[-1], ROWS)])
    return _from_rows(out, x, offset.shape[2:])


def _columns(maps, moves, factors, geometry, pieces: _Pieces, image: int, block: slice, piece: slice) -> Tensor:
    """The columns (R, K c) of a block and a piece."""
    columns = maps.new_empty(block.stop - block.start, pieces.taps, piece.stop - piece.start)
    at = image, pieces.offset_group(piece)
    arrays = (tensor.numpy() for tensor in (maps[image], moves[at], factors[at], columns))
    _sample(*arrays, geometry, block.start, piece.start)
    return columns.flatten(1)


def _deformable_convolution_backward_cpu(
    grad, x, offset, weight, mask, stride, padding, dilation, groups
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(x, offset, weight, mask)
    geometry, pieces = _geometry(x, offset, weight, stride, padding, dilation), _Pieces(x, offset, weight, groups)
    maps, grads, (moves, factors) = _rows(x, wide), _rows(grad, wide), _moves(offset, mask, pieces.taps, wide)
    runs = pieces.runs()
    apart = 1 + max(number for number, _ in runs)
    grad_x, grad_moves = torch.zeros_like(maps), moves.new_zeros(apart, *moves.shape)
    grad_factors = factors.new_zeros(apart, *factors.shape)

    def one(item: tuple[int, tuple[int, list[slice]]]) -> None:
        image, (number, listed) = item
        for piece in listed:
            part = pieces.weight(weight, piece).to(wide).transpose(1, 2).flatten(1)  # O / groups, K c
            at = image, pieces.offset_group(piece)
            tensors = grad_x[image], grad_moves[number][at], grad_factors[number][at]
            given = maps[image], moves[at], factors[at]
            for block in slices(0, moves.shape[-1], ROWS):
                columns = (grads[image, block, pieces.group(piece)] @ part).unflatten(1, (pieces.taps, -1))
                arrays = (tensor.numpy() for tensor in (*given, columns, *tensors))
                _spread(*arrays, geometry, block.start, piece.start)

    each(one, itertools.product(range(len(x)), runs))
    return (
        _from_rows(grad_x, x, x.shape[2:]),
        grad_moves.sum(0).reshape(offset.shape).to(offset.dtype),
        x.new_empty(0) if mask is None else grad_factors.sum(0).reshape(mask.shape).to(mask.dtype),
    )


def _deformable_convolution_weight_backward_cpu(
    grad, x, offset, weight, mask, stride, padding, dilation, groups
) -> Tensor:
    wide = _wide(x, offset, weight, mask)
    geometry, pieces = _geometry(x, offset, weight, stride, padding, dilation), _Pieces(x, offset, weight, groups)
    maps, grads, (moves, factors) = _rows(x, wide), _rows(grad, wide), _moves(offset, mask, pieces.taps, wide)
    grad_weight = weight.new_empty(weight.shape)

    def one(piece: slice) -> None:
        total = maps.new_zeros(pieces.taps * (piece.stop - piece.start), pieces.outputs)
        for image in range(len(x)):
            for block in slices(0, moves.shape[-1], ROWS):
                columns = _columns(maps, moves, factors, geometry, pieces, image, block, piece)
                total.addmm_(columns.mT, grads[image, block, pieces.group(piece)])
        pieces.weight(grad_weight, piece).copy_(total.unflatten(0, (pieces.taps, -1)).permute(2, 1, 0))

    each(one, pieces.channels)
    return grad_weight


# Triton: a kernel writes the columns of a block of pixels, of all images in a row, beside a product of matrices by
# PyTorch; another one spreads the gradients of columns. Columns are (groups, R, K, C / groups), maps channels-last.

# Numbers in the columns of a block at most, and elements of a tile.
COLUMNS, ELEMENTS = 1 << 25, 2048

_FREE = ["first", "rows", "height", "width", "out_width", "outputs", "down", "right", "above", "left", "apart", "aside"]


@triton.jit
def _tile_places(
    offset, mask, first, rows, taps, height, width, out_width, outputs, kernel_width,
    down, right, above, left, apart, aside, BLOCK_R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of a tile of output pixels and one tap of one offset group: rows of the block, images, where mask and offset
    stand, places, whether they lie in the map, and factors."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = r < rows
    image, pixel, tap = (first + r) // outputs, (first + r) % outputs, tl.program_id(1) % taps
    place = (image * tl.num_programs(1) + tl.program_id(1)) * outputs + pixel
    place_y = place + (image * tl.num_programs(1) + tl.program_id(1)) * outputs
    factor = tl.load(mask + place, mask=inside, other=0).to(WIDE)
    y = tl.load(offset + place_y, mask=inside, other=0).to(WIDE)
    x = tl.load(offset + place_y + outputs, mask=inside, other=0).to(WIDE)
    y += (pixel // out_width * down - above + tap // kernel_width * apart).to(WIDE)
    x += (pixel % out_width * right - left + tap % kernel_width * aside).to(WIDE)
    seen = inside & (y > -1) & (y < height) & (x > -1) & (x < width)
    return r, inside, image, place, place_y, tl.where(seen, y, 0), tl.where(seen, x, 0), seen, factor


@triton.jit
def _tile_corner(image, y, x, seen, height, width, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    """Number among all images of a pixel around a place, whether it exists, its share, and the share's slopes."""
    row, column = tl.floor(y).to(tl.int64) + DOWN, tl.floor(x).to(tl.int64) + RIGHT
    down, right = y - tl.floor(y), x - tl.floor(x)
    high = down if DOWN == 1 else 1 - down
    wide = right if RIGHT == 1 else 1 - right
    inside = seen & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    slope_y = wide if DOWN == 1 else -wide
    slope_x = high if RIGHT == 1 else -high
    return (image * height + row) * width + column, inside, high * wide, slope_y, slope_x


@triton.jit
def _tile_columns(r, c, rows, taps, depth):
    """Where the columns of rows r and channels c stand."""
    return ((c // depth * rows + r[:, None]) * taps + tl.program_id(1) % taps) * depth + c % depth


@triton.jit(do_not_specialize=_FREE)
def deformable_convolution_sample_kernel(
    x, offset, mask, columns, channels, run, depth, first, rows, taps, height, width, out_width, outputs, kernel_width,
    down, right, above, left, apart, aside,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Columns of a tile of pixels, for one tap and the `run` channels of one offset group."""
    r, inside, image, _place, _place_y, y, z, seen, factor = _tile_places(
        offset, mask, first, rows, taps, height, width, out_width, outputs, kernel_width,
        down, right, above, left, apart, aside, BLOCK_R, WIDE,
    )  # fmt: skip
    for start in range(0, run, BLOCK_C):
        within = start + tl.arange(0, BLOCK_C)[None, :]
        c = tl.program_id(1) // taps * run + within
        total = tl.zeros((BLOCK_R, BLOCK_C), dtype=WIDE)
        for corner in tl.static_range(4):
            n, exists, share, _slope_y, _slope_x = _tile_corner(
                image, y, z, seen, height, width, corner // 2, corner % 2
            )
            value = tl.load(x + n[:, None] * channels + c, mask=exists[:, None] & (within < run), other=0)
            total += share[:, None] * value.to(WIDE)
        total *= factor[:, None]
        place_c = _tile_columns(r, c, rows, taps, depth)
        tl.store(columns + place_c, total.to(columns.dtype.element_ty), mask=inside[:, None] & (within < run))


@triton.jit(do_not_specialize=_FREE)
def deformable_convolution_spread_kernel(
    x, offset, mask, columns, grad_x, grad_offset, grad_mask,
    channels, run, depth, first, rows, taps, height, width, out_width, outputs, kernel_width,
    down, right, above, left, apart, aside,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What the gradients of columns give to those of x, in any order, and of offset and mask."""
    r, inside, image, place, place_y, y, z, seen, factor = _tile_places(
        offset, mask, first, rows, taps, height, width, out_width, outputs, kernel_width,
        down, right, above, left, apart, aside, BLOCK_R, WIDE,
    )  # fmt: skip
    along = tl.zeros((BLOCK_R,), dtype=WIDE)
    along_y, along_x = along, along
    for start in range(0, run, BLOCK_C):
        within = start + tl.arange(0, BLOCK_C)[None, :]
        c = tl.program_id(1) // taps * run + within
        place_c = _tile_columns(r, c, rows, taps, depth)
        grad = tl.load(columns + place_c, mask=inside[:, None] & (within < run), other=0).to(WIDE)
        for corner in tl.static_range(4):
            n, exists, share, slope_y, slope_x = _tile_corner(image, y, z, seen, height, width, corner // 2, corner % 2)
            at, known = n[:, None] * channels + c, exists[:, None] & (within < run)
            product = tl.sum(grad * tl.load(x + at, mask=known, other=0).to(WIDE), 1)
            along += share * product
            along_y += slope_y * product
            along_x += slope_x * product
            tl.atomic_add(grad_x + at, (share * factor)[:, None] * grad, mask=known, sem="relaxed")
    tl.store(grad_mask + place, tl.where(seen, along, 0), mask=inside)
    tl.store(grad_offset + place_y, tl.where(seen, along_y * factor, 0), mask=inside)
    tl.store(grad_offset + place_y + outputs, tl.where(seen, along_x * factor, 0), mask=inside)


class _Launch:
    """The Triton path's tensors and blocks of one call."""

    def __init__(self, x, offset, weight, mask, stride, padding, dilation, groups, wide):
        kernel = weight.shape[2:]
        self.taps, self.groups, self.wide = kernel[0] * kernel[1], groups, wide
        self.dtype = torch.promote_types(x.dtype, weight.dtype)  # of products
        self.maps = _rows(x, x.dtype)
        self.moves, self.factors = _moves(offset, mask, self.taps, wide)
        self.depth = x.shape[1] // groups
        outputs = self.moves.shape[-1]
        self.rows = len(x) * outputs
        self.sizes = *x.shape[2:], offset.shape[3], outputs, kernel[1], *stride, *padding, *dilation
        self.blocks = slices(0, self.rows, max(1, COLUMNS // (self.taps * x.shape[1])))

    def kernels(self, weight: Tensor) -> Tensor:
        """(groups, K C / groups, O / groups)."""
        parts = weight.to(self.dtype).unflatten(0, (self.groups, -1)).flatten(3)
        return parts.permute(0, 3, 2, 1).flatten(1, 2)

    def grads(self, grad: Tensor) -> Tensor:
        """(groups, B P, O / groups)."""
        rows = _rows(grad, self.dtype).flatten(0, 1)
        return rows.unflatten(1, (self.groups, -1)).transpose(0, 1)

    def start(self, kernel, block: slice, *tensors: Tensor) -> None:
        channels, rows = self.maps.shape[2], block.stop - block.start
        offset_groups = self.moves.shape[1]
        run = channels // offset_groups
        block_r, block_c = rows_by_channels(run, 64, ELEMENTS)
        sizes = channels, run, self.depth, block.start, rows, self.taps, *self.sizes
        options = dict(WIDE=triton_dtype(self.wide), BLOCK_R=block_r, BLOCK_C=block_c)
        with torch.cuda.device_of(self.maps):
            grid = triton.cdiv(rows, block_r), offset_groups * self.taps
            kernel[grid](self.maps, self.moves, self.factors, *tensors, *sizes, **options)

    def columns(self, block: slice) -> Tensor:
        """(groups, R, K C / groups) of a block of pixels."""
        shape = self.groups, block.stop - block.start, self.taps * self.depth
        columns = self.maps.new_empty(shape, dtype=self.dtype)
        self.start(deformable_convolution_sample_kernel, block, columns)
        return columns


def _deformable_convolution_triton(x, offset, weight, bias, mask, stride, padding, dilation, groups) -> Tensor:
    wide = _wide(x, offset, weight, bias, mask)
    launch = _Launch(x, offset, weight, mask, stride, padding, dilation, groups, wide)
    kernels = launch.kernels(weight)
    out = x.new_empty(len(x), launch.moves.shape[-1], len(weight), dtype=launch.dtype)
    rows = out.flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)
    for block in launch.blocks:
        rows[:, block] = launch.columns(block) @ kernels
    if bias is not None:
        out = out.to(wide) + bias.to(wide)
    return _from_rows(out, x, offset.shape[2:])


def _deformable_convolution_backward_triton(
    grad, x, offset, weight, mask, stride, padding, dilation, groups
) -> tuple[Tensor, Tensor, Tensor]:
    if torch.are_deterministic_algorithms_enabled():
        return deformable_convolution_backward_reference(
            grad, x, offset, weight, mask, stride, padding, dilation, groups
        )
    wide = _wide(x, offset, weight, mask)
    launch = _Launch(x, offset, weight, mask, stride, padding, dilation, groups, wide)
    kernels, grads = launch.kernels(weight).mT, launch.grads(grad)
    grad_x = launch.maps.new_zeros(launch.maps.shape, dtype=wide)
    grad_moves, grad_factors = torch.empty_like(launch.moves), torch.empty_like(launch.factors)
    for block in launch.blocks:
        columns = grads[:, block] @ kernels
        launch.start(deformable_convolution_spread_kernel, block, columns, grad_x, grad_moves, grad_factors)
    return (
        _from_rows(grad_x, x, x.shape[2:]),
        grad_moves.reshape(offset.shape).to(offset.dtype),
        x.new_empty(0) if mask is None else grad_factors.reshape(mask.shape).to(mask.dtype),
    )


def _deformable_convolution_weight_backward_triton(
    grad, x, offset, weight, mask, stride, padding, dilation, groups
) -> Tensor:
    launch = _Launch(x, offset, weight, mask, stride, padding, dilation, groups, _wide(x, offset, weight, mask))
    grads = launch.grads(grad)
    total = x.new_zeros(groups, launch.taps * launch.depth, grads.shape[2], dtype=launch.wide)
    for block in launch.blocks:
        total += launch.columns(block).mT @ grads[:, block]
    total = total.unflatten(1, (launch.taps, -1)).permute(0, 3, 2, 1)
    return total.reshape(weight.shape).to(weight.dtype).contiguous()


@torch.library.custom_op("attlas::deformable_convolution", mutates_args=())
def deformable_convolution_op(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return pick(
        x,
        reference=deformable_convolution_reference,
        triton=_deformable_convolution_triton,
        cpu=_deformable_convolution_cpu,
    )(x, offset, weight, bias, mask, stride, padding, dilation, groups)


@deformable_convolution_op.register_fake
def _(x, offset, weight, bias, mask, stride, padding, dilation, groups):
    return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[2:])


@torch.library.custom_op("attlas::deformable_convolution_backward", mutates_args=())
def deformable_convolution_backward_op(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return pick(
        x,
        reference=deformable_convolution_backward_reference,
        triton=_deformable_convolution_backward_triton,
        cpu=_deformable_convolution_backward_cpu,
    )(grad, x, offset, weight, mask, stride, padding, dilation, groups)


@deformable_convolution_backward_op.register_fake
def _(grad, x, offset, weight, mask, stride, padding, dilation, groups):
    grad_mask = x.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    return x.new_empty(x.shape), offset.new_empty(offset.shape), grad_mask


@torch.library.custom_op("attlas::deformable_convolution_weight_backward", mutates_args=())
def deformable_convolution_weight_backward_op(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    return pick(
        x,
        reference=deformable_convolution_weight_backward_reference,
        triton=_deformable_convolution_weight_backward_triton,
        cpu=_deformable_convolution_weight_backward_cpu,
    )(grad, x, offset, weight, mask, stride, padding, dilation, groups)


@deformable_convolution_weight_backward_op.register_fake
def _(grad, x, offset, weight, mask, stride, padding, dilation, groups):
    return weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):
    x, offset, weight, bias, mask, *ctx.settings = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, offset, weight, mask)


def _backward(ctx, grad):
    needed = ctx.needs_input_grad
    arguments = grad, *ctx.saved_tensors, *ctx.settings
    grad_x = grad_offset = grad_weight = grad_bias = grad_mask = None
    if needed[0] or needed[1] or needed[4]:
        grad_x, grad_offset, grad_mask = deformable_convolution_backward_op(*arguments)
    if needed[2]:
        grad_weight = deformable_convolution_weight_backward_op(*arguments)
    if needed[3]:
        grad_bias = grad.sum((0, 2, 3), dtype=sum_dtype(grad)).to(ctx.bias_dtype)
    return grad_x, grad_offset, grad_weight, grad_bias, grad_mask if needed[4] else None, None, None, None, None


deformable_convolution_op.register_autograd(_backward, setup_context=_setup_context)
decompose(deformable_convolution_op, deformable_convolution_reference)
