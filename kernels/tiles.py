"""Pieces that several Triton kernels share: tiles, their loads, stores and products, and regions of maps.

    item_rows                       the rows of one item (a cloud, an image) that a program works on
    load_rows, store_rows, dot      tiles of matrices, and their products
    to_regions, from_regions        maps (B, H, W, heads, C) cut into regions of equal size, by PyTorch
    region_rows                     the same regions in place, for Triton

Legend: P problems: all (image, head, region) in this order; T tokens of a region.
"""

import torch
from torch import Tensor

from .checks import sum_dtype
from .dispatch import INTERPRETED, tl, triton

# how tl.dot multiplies float32: three TF32 products, as exact as one in float32 and up to seven times as fast
PRECISION = tl.constexpr("tf32x3")


def tile_of(length: int, at_most: int = 1 << 30) -> int:
    """The tile for an axis of a matrix product: a power of two, 16 at least."""
    return min(max(16, triton.next_power_of_2(length)), at_most)


def rows_by_channels(channels: int, at_most: int = 128, elements: int = 2048) -> tuple[int, int]:
    """Rows and channels of a tile of `elements` elements: a power of two of channels, up to `at_most`."""
    block = min(triton.next_power_of_2(channels), at_most)
    return elements // block, block


def triton_dtype(dtype: torch.dtype):
    """Triton's name for a dtype of sums, float64 or float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def for_dot(x: Tensor) -> Tensor:
    """x, in float32 if it is bfloat16 and Triton's interpreter runs, whose tl.dot multiplies the bits of bfloat16."""
    return x.float() if INTERPRETED and x.dtype == torch.bfloat16 else x


def operands(*tensors: Tensor) -> list[Tensor]:
    """`for_dot(x)`, contiguous, for each of the tensors."""
    return [for_dot(x).contiguous() for x in tensors]


@triton.jit
def item_rows(count, BLOCK: tl.constexpr):
    """The item (a cloud, an image, ...) of this program, a block of its `count` rows, and which of these rows exist.

    The grid's first axis runs over the blocks of all items, one item after the other.
    """
    blocks = tl.cdiv(count, BLOCK)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return item, row, row < count


@triton.jit
def load_rows(x, row, column, inside, width, stride=None):
    """A tile of x, a matrix of `width` columns whose rows lie `stride` apart (`width` by default); zero outside."""
    if stride is None:
        stride = width
    mask = inside[:, None] & (column < width)[None, :]
    return tl.load(x + row[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x, value, row, column, inside, width):
    """Store a tile into x, a contiguous matrix of `width` columns, in the dtype of x."""
    mask = inside[:, None] & (column < width)[None, :]
    tl.store(x + row[:, None] * width + column[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def dot(x, y, SUM: tl.constexpr):
    """x @ y, summed in the dtype SUM with the precision of float32; x is first rounded to the dtype of y."""
    return tl.dot(x.to(y.dtype), y, input_precision=PRECISION, out_dtype=SUM)


@triton.jit
def region_rows(image, region, token, head, heads, regions, columns, high, wide):
    """The rows of some tokens of a region in a map (B, H, W, heads, ...); regions have `high` x `wide` tokens."""
    y, x = region // columns * high + token // wide, region % columns * wide + token % wide
    return ((image * regions * high * wide) + y * (columns * wide) + x) * heads + head


def to_regions(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, H, W, heads, C) -> (P, T, C), in the dtype of sums."""
    x = x.to(sum_dtype(x)).unflatten(1, (rows, -1)).unflatten(3, (columns, -1))  # B Ry h Rx w heads C
    return x.permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5).flatten(0, 3).contiguous()


def from_regions(x: Tensor, like: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `to_regions`, for a map of the height, width and heads of `like`."""
    batch, height, width, heads, _ = like.shape
    shape = batch, heads, rows, columns, height // rows, width // columns, x.shape[-1]
    x = x.view(shape).permute(0, 2, 4, 3, 5, 1, 6)
    return x.flatten(1, 2).flatten(2, 3).contiguous()
