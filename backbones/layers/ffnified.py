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
    """The sum of two depth-wise convolutions with batch norms, one of few taps; `fused` gives the one that equals both.

    Args:
        in_dim, dim: channels of the input and of the output, a multiple of them.
        kernel_size: taps of the large kernel along an axis, odd.
        stride: pixels from one output to the next.
        small_size: taps of the small kernel along an axis, odd.

    `forward(x (B, in_dim, H, W)) -> (B, dim, ⌈H / stride⌉, ⌈W / stride⌉)`.
    """

    def __init__(self, in_dim: int, dim: int, kernel_size: int = 7, stride: int = 1, small_size: int = 3):
        super().__init__()
        if kernel_size % 2 == 0 or small_size % 2 == 0 or not 1 <= small_size < kernel_size:
            raise ValueError(
                f"RepDepthwise: kernel_size={kernel_size} and small_size={small_size} must be odd, the second smaller"
            )
        self.large: nn.Module = ConvNorm(in_dim, dim, kernel_size, stride, groups=in_dim)
        self.small: nn.Module = ConvNorm(in_dim, dim, small_size, stride, groups=in_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)

    @torch.no_grad()
    def fused(self) -> nn.Module:
        large: Any = fuse(self.large)
        small: Any = fuse(self.small)
        margin = (large.kernel_size[0] - small.kernel_size[0]) // 2
        large.weight += F.pad(small.weight, (margin,) * 4)
        large.bias += small.bias
        return large


def depthwise_of(dim: int, kernel_size: int, norm: bool) -> nn.Module:
    """The paper's depth-wise convolution of a size: above 3 taps `RepDepthwise`; else with batch norm, or with bias."""
    if kernel_size > 3:
        return RepDepthwise(dim, dim, kernel_size)
    return depthwise_norm(dim, kernel_size) if norm else depthwise(dim, kernel_size)


@MIXERS.register_module()
class FFNifiedAttention(nn.Module):
    """value(GELU(key(query(x)))), see above. There is no positional term but the padding with zeros.

    Args:
        dim: channels C.
        kernel_sizes: taps along an axis of key and value, odd; above 3 they are `RepDepthwise`.
        norm: whether the query has a batch norm in place of its bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, kernel_sizes: Sequence[int] = (7, 7), norm: bool = True):
        super().__init__()
        check_sizes("FFNifiedAttention: kernel_sizes", kernel_sizes, 2)
        self.query = ConvNorm(dim, dim) if norm else Pointwise(dim, dim)
        self.key, self.value = (depthwise_of(dim, size, norm=False) for size in kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(F.gelu(self.key(self.query(x))))


class DepthwiseMlp(nn.Module):
    """The paper's channel mixer: a depth-wise convolution, then fc2(GELU(fc1(x))) of every pixel.

    Args:
        dim: channels C.
        ratio: hidden width over C.
        kernel_size: taps along an axis of the depth-wise convolution, odd; above 3 it is `RepDepthwise`.
        norm: whether a convolution of 3 taps has a batch norm in place of its bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, ratio: float = 3.0, kernel_size: int = 7, norm: bool = True):
        super().__init__()
        check_sizes("DepthwiseMlp: kernel_size", (kernel_size,), 1)
        hidden = int(dim * ratio)
        self.conv = depthwise_of(dim, kernel_size, norm)
        self.fc1, self.fc2 = Pointwise(dim, hidden), Pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.conv(x))))


def check_sizes(name: str, sizes: Sequence[int], count: int) -> None:
    """Refuse what are not so many odd numbers."""
    if len(sizes) != count or any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"{name}={sizes!r} must be {count} odd number{'s' * (count > 1)}")
