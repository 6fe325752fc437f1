"""Linear maps of the channels of every pixel, by the fastest way that PyTorch has for them on a CPU.

PyTorch gives float32 products to MKL, and 1x1 convolutions too where one thread has fewer than 16 images. On AMD's
processors MKL leaves half the width of the registers unused. oneDNN uses it, and PyTorch gives it every *dilated*
convolution. A kernel of one tap is the same with and without dilation, so that is asked for. The results differ by
rounding. Traced graphs (`torch.compile`, exports) hold the plain operators.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN_FROM = 20_480  # elements of one image above which PyTorch takes oneDNN for it at all


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN should compute the products of x with a weight: in float32 on a CPU, outside of traced graphs."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > ONEDNN_FROM
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: rows x (..., C), weight (D, C) and bias (D,) -> (..., D)."""
    if not by_onednn(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # an image one pixel wide, channels-last
    y = F.conv2d(rows, weight[..., None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear`, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution: dense, or depth-wise (`groups` = channels), which is a product.

    Args:
        in_dim, dim: channels of the input and of the output.
        stride: pixels from one output to the next.
        groups: 1, or the number of channels.
        bias: whether a bias is added.

    `forward(x (B, in_dim, H, W)) -> (B, dim, ⌈H / stride⌉, ⌈W / stride⌉)`.
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 1, groups: int = 1, bias: bool = True):
        if groups != 1 and not groups == in_dim == dim:
            raise ValueError(f"Pointwise: groups={groups} must be 1, or in_dim={in_dim} and dim={dim}")
        super().__init__(in_dim, dim, 1, stride, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.groups > 1:  # PyTorch would run one thread's through its channels, one by one
            row, column = self.stride
            y = x[..., ::row, ::column] * self.weight.view(-1, 1, 1)
            return y if self.bias is None else y + self.bias.view(-1, 1, 1)
        if by_onednn(x, self.weight):
            return F.conv2d(x, self.weight, self.bias, self.stride, dilation=2)
        return super().forward(x)
