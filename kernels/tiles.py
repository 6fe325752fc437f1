"""What several Triton kernels load, store and multiply alike, and how they cut tensors into tiles.

    item_rows                           the rows of one cloud or image that a program takes
    load_rows, store_rows, dot          matrices: rows by columns of memory, and their products
    to_regions, from_regions            maps (B, H, W, heads, C) cut into regions of equal size, in PyTorch
    region_rows                         the same regions where they lie, in Triton

Legend: P problems: all (image, head, region) in this order; T tokens of a region.
"""

import torch
from torch import Tensor

from .checks import sum_dtype
from .dispatch import INTERPRETED, tl, triton

# of tl.dot on float32: three products on tensor cores, as exact as one in float32 and up to seven times as fast
PRECISION = tl.constexpr("tf32x3")


def tile_of(length: int, at_most: int = 1 << 30) -> int:
    """The tile for an axis of a matrix product: a power of two, 16 at least."""
    return min(max(16, triton.next_power_of_2(length)), at_most)


def rows_by_channels(channels: int, at_most: int = 128, elements: int = 2048) -> tuple[int, int]:
    """A tile of `elements` without products: a power of two of channels, and rows beside it."""
    block = min(triton.next_power_of_2(channels), at_most)
    return elements // block, block


def triton_dtype(dtype: torch.dtype):
    """Of sums: float64, or float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def for_dot(x: Tensor) -> Tensor:
    """x as a kernel multiplies it: Triton's interpreter takes the bits of bfloat16 for numbers, and gets float32."""
    return x.float() if INTERPRETED and x.dtype == torch.bfloat16 else x


def operands(*tensors: Tensor) -> list[Tensor]:
    """The tensors `for_dot`, contiguous."""
    return [for_dot(x).contiguous() for x in tensors]


@triton.jit
def item_rows(count, BLOCK: tl.constexpr):
    """The item of this program, its rows of the item's `count` rows, and which of them exist.

    Program 0 of the grid takes the first block of rows of the first item (a cloud, an image), and so on.
    """
    blocks = tl.cdiv(count, BLOCK)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return item, row, row < count


@triton.jit
def load_rows(x, row, column, inside, width, stride=None):
    """Rows by columns of x, whose rows of `width` entries lie `stride` apart, `width` by default; zero outside."""
    if stride is None:
        stride = width
    mask = inside[:, None] & (column < width)[None, :]
    return tl.load(x + row[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x, value, row, column, inside, width):
    mask = inside[:, None] & (column < width)[None, :]
    tl.store(x + row[:, None] * width + column[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def dot(x, y, SUM: tl.constexpr):
    """x @ y summed in the dtype SUM, with all digits of float32; x is rounded to the dtype of y."""
    return tl.dot(x.to(y.dtype), y, input_precision=PRECISION, out_dtype=SUM)


@triton.jit
def region_rows(image, region, token, head, heads, regions, columns, high, wide):
    """The rows of tokens of a region in a map (B, H, W, heads, ...) whose regions are `high` x `wide`."""
    y, x = region // columns * high + token // wide, region % columns * wide + token % wide
    return ((image * regions * high * wide) + y * (columns * wide) + x) * heads + head


def to_regions(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, H, W, heads, C) -> (P, T, C), in the dtype that is summed in."""
    x = x.to(sum_dtype(x)).unflatten(1, (rows, -1)).unflatten(3, (columns, -1))  # B Ry h Rx w heads C
    return x.permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5).flatten(0, 3).contiguous()


def from_regions(x: Tensor, like: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `to_regions`, for a map of the height, width and heads of `like`."""
    batch, height, width, heads, _ = like.shape
    shape = batch, heads, rows, columns, height // rows, width // columns, x.shape[-1]
    x = x.view(shape).permute(0, 2, 4, 3, 5, 1, 6)
    return x.flatten(1, 2).flatten(2, 3).contiguous()
