"""Normalization of maps, and convolutions that can swallow the normalization behind them."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from .linear import Pointwise


class ByChannels:
    """Lets a module that reads the last dimension serve maps (B, C, H, W) as well as rows (B, N, C): in channels-last
    memory both without a copy. It stands before the module's class in the bases."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            return super().forward(x)  # type: ignore[misc]
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[misc]


class LayerNorm2d(ByChannels, nn.LayerNorm):
    """Layer norm over the channels of every pixel of a map (B, C, H, W), or of every row (B, N, C)."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__(dim, eps=eps)


class ConvNorm(nn.Module):
    """Convolution, then batch norm. `fused` gives the one convolution that equals both in inference.

    Args:
        in_dim, dim: channels of the input and of the output.
        kernel_size, stride, groups, dilation: as of `nn.Conv2d`; a pair (rows, columns) for a kernel that is no square.
            The padding keeps the size (rounded up by a stride).
        weight: initial scale of the norm; 0 makes a residual branch begin as nothing.
        bias: whether the convolution has a bias; the norm makes it superfluous, some published networks have it.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        weight: float = 1.0,
        bias: bool = False,
    ):
        super().__init__()
        self.conv: nn.Conv2d
        sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if sides == (1, 1) and (groups == 1 or groups == in_dim == dim):
            self.conv = Pointwise(in_dim, dim, stride, groups, bias)
        else:
            rows, columns = (dilation * (side - 1) // 2 for side in sides)
            self.conv = nn.Conv2d(in_dim, dim, sides, stride, (rows, columns), dilation, groups, bias)
        self.norm = nn.BatchNorm2d(dim)
        nn.init.constant_(self.norm.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        return fuse_norm(self.conv, self.norm)


@torch.no_grad()
def fuse_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution with bias that equals `conv` and then `norm` with its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = conv.bias if conv.bias is not None else torch.zeros_like(scale)
    fused = copy.deepcopy(conv)
    fused.weight.mul_(scale.view(-1, 1, 1, 1))
    fused.bias = nn.Parameter(norm.bias + (bias - norm.running_mean) * scale)
    return fused


def normal_by_fan_out(conv: nn.Conv2d) -> None:
    """Initial weights of a convolution, in place: normal with variance 2 / fan-out, where the fan-out is that of one
    group; no bias. Source: EfficientNet's code, after He et al., arXiv 1502.01852."""
    fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel() / conv.groups
    nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def fuse(module: nn.Module) -> nn.Module:
    """Replace every part that has a `fused()` by what it returns, the inner parts first; for inference only.

    `module` itself is changed and returned (if it has a `fused()`, that is returned).
    """
    for name, child in module.named_children():
        setattr(module, name, fuse(child))
    fused: Any = getattr(module, "fused", None)
    return module if fused is None else fused()
