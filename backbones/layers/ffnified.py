"""FFNified attention, and the re-parameterized depth-wise convolutions that it is made of.

"MetaMixer Is All You Need", arXiv 2406.02021; https://github.com/ysj9909/FFNet (Apache-2.0). The roles of attention
without its products of matrices: a 1x1 convolution makes the query, a depth-wise kernel (the static keys) gives its
similarities, GELU stands for the softmax, and a second depth-wise kernel (the static values) aggregates.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MIXERS
from .linear import Pointwise
from .norm import ConvNorm, fuse
from .residual import depthwise, depthwise_norm


class RepDepthwise(nn.Module):
    """The sum of depth-wise convolutions of several sizes, each with a batch norm; `fused` gives the one that equals
    all of them.

    Args:
        in_dim, dim: channels of the input and of the output, a multiple of them.
        shapes: taps (rows, columns) of each kernel, odd; the first one covers the others.
        stride: pixels from one output to the next.

    `forward(x (B, in_dim, H, W)) -> (B, dim, ⌈H / stride⌉, ⌈W / stride⌉)`.
    """

    def __init__(self, in_dim: int, dim: int, shapes: Sequence[tuple[int, int]] = ((7, 7), (3, 3)), stride: int = 1):
        super().__init__()
        rows, columns = shapes[0]
        if any(not (1 <= r <= rows and 1 <= c <= columns and r % 2 and c % 2) for r, c in shapes):
            raise ValueError(f"RepDepthwise: shapes={shapes!r} must be pairs of odd numbers, none above the first one")
        if dim % in_dim:
            raise ValueError(f"RepDepthwise: dim={dim} must be a multiple of in_dim={in_dim}")
        self.branches = nn.ModuleList(ConvNorm(in_dim, dim, shape, stride, groups=in_dim) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        for y in others:
            first = first + y
        return first

    @torch.no_grad()
    def fused(self) -> nn.Module:
        merged: list[Any] = [fuse(branch) for branch in self.branches]
        first = merged[0]
        for conv in merged[1:]:
            rows, columns = ((a - b) // 2 for a, b in zip(first.kernel_size, conv.kernel_size))
            first.weight += F.pad(conv.weight, (columns, columns, rows, rows))
            first.bias += conv.bias
        return first


def depthwise_of(dim: int, kernel_size: int, norm: bool, strips: bool = False) -> nn.Module:
    """The paper's depth-wise convolution of k taps along an axis. Of 7 it is `RepDepthwise` of 7 x 7 and 3 x 3; else it
    is one convolution, with batch norm or with bias. With strips (the paper's segmentor) it is `RepDepthwise` of any
    size: k x k, 1 x k, k x 1 and (k - 4) x (k - 4), if there is one."""
    square = (kernel_size, kernel_size)
    if strips and kernel_size > 1:
        smaller = [(kernel_size - 4, kernel_size - 4)] if kernel_size > 3 else []
        return RepDepthwise(dim, dim, [square, (1, kernel_size), (kernel_size, 1), *smaller])
    if kernel_size == 7:
        return RepDepthwise(dim, dim, [square, (3, 3)])
    return depthwise_norm(dim, kernel_size) if norm else depthwise(dim, kernel_size)


@MIXERS.register_module()
class FFNifiedAttention(nn.Module):
    """value(GELU(key(query(x)))), see above. There is no positional term but the padding with zeros.

    Args:
        dim: channels C.
        kernel_sizes: taps along an axis of key and value, odd; those of 7 are `RepDepthwise`.
        norm: whether the query has a batch norm in place of its bias.
        strips: whether the kernels are trained with strips of one row and of one column, see `depthwise_of`.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, kernel_sizes: Sequence[int] = (7, 7), norm: bool = True, strips: bool = False):
        super().__init__()
        check_sizes("FFNifiedAttention: kernel_sizes", kernel_sizes, 2)
        self.query = ConvNorm(dim, dim) if norm else Pointwise(dim, dim)
        self.key, self.value = (depthwise_of(dim, size, False, strips) for size in kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(F.gelu(self.key(self.query(x))))


class DepthwiseMlp(nn.Module):
    """The paper's channel mixer: a depth-wise convolution, then fc2(GELU(fc1(x))) of every pixel.

    Args:
        dim: channels C.
        ratio: hidden width over C.
        kernel_size: taps along an axis of the depth-wise convolution, odd; of 7 it is `RepDepthwise`.
        norm: whether a convolution of other sizes has a batch norm in place of its bias.
        strips: as of `FFNifiedAttention`.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, ratio: float = 3.0, kernel_size: int = 7, norm: bool = True, strips: bool = False):
        super().__init__()
        check_sizes("DepthwiseMlp: kernel_size", (kernel_size,), 1)
        hidden = int(dim * ratio)
        self.conv = depthwise_of(dim, kernel_size, norm, strips)
        self.fc1, self.fc2 = Pointwise(dim, hidden), Pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.conv(x))))


def check_sizes(name: str, sizes: Sequence[int], count: int) -> None:
    """Refuse what are not so many odd numbers."""
    if len(sizes) != count or any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"{name}={sizes!r} must be {count} odd number{'s' * (count > 1)}")
