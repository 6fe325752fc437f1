"""Channel mixers: what every pixel does for itself. All take and give maps (B, C, H, W), `Mlp` also rows."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear
from .norm import ByChannels, ConvNorm
from .residual import depthwise


class Linear2d(ByChannels, Linear):
    """A linear layer over the channels of a map (B, C, H, W), or of rows (B, N, C)."""


class Mlp(nn.Module):
    """Linear, activation, linear, on maps (B, C, H, W) or rows (B, N, C).

    Args:
        dim: channels C.
        ratio: hidden width over C.
        activation: class or function that makes the activation.
    """

    def __init__(self, dim: int, ratio: float = 4.0, activation: Callable[[], nn.Module] = nn.GELU):
        super().__init__()
        self.fc1 = Linear2d(dim, int(dim * ratio))
        self.activation = activation()
        self.fc2 = Linear2d(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class QuickGelu(nn.Module):
    """x σ(1.702 x), an approximation of GELU. Source: CLIP, arXiv 2103.00020."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class SwiGlu(nn.Module):
    """Gated linear unit: fc2(silu(a) * v), where (a, v) = fc1(x), on maps (B, C, H, W) or rows (B, N, C).

    The hidden width is two thirds of `ratio` times `dim`, rounded up to a multiple of 8.
    Sources: arXiv 2002.05202; DINOv2, arXiv 2304.07193.
    """

    def __init__(self, dim: int, ratio: float = 4.0):
        super().__init__()
        hidden = (int(int(dim * ratio) * 2 / 3) + 7) // 8 * 8
        self.fc1 = Linear2d(dim, 2 * hidden)
        self.fc2 = Linear2d(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=1 if x.ndim == 4 else -1)
        return self.fc2(F.silu(gate) * value)


class ConvGlu(nn.Module):
    """Convolutional gated linear unit: fc2(norm(activation(depth-wise 3x3(a)) * v)), where (a, v) = fc1(x).

    The hidden width is two thirds of `ratio` times `dim`, which makes it as costly as an `Mlp` of that ratio.
    Source: TransNeXt, arXiv 2311.17132.
    """

    def __init__(
        self,
        dim: int,
        ratio: float,
        norm: Callable[[int], nn.Module] | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
    ):
        super().__init__()
        hidden = 2 * int(dim * ratio) // 3
        self.fc1 = Linear2d(dim, 2 * hidden)
        self.dwconv = depthwise(hidden, 3)
        self.activation = activation()
        self.norm = norm(hidden) if norm else nn.Identity()
        self.fc2 = Linear2d(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=1)
        return self.fc2(self.norm(self.activation(self.dwconv(gate)) * value))


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with batch norms, ReLU between; the last norm begins at zero, and so the branch."""

    def __init__(self, dim: int, ratio: float = 2.0):
        super().__init__()
        self.fc1 = ConvNorm(dim, int(dim * ratio))
        self.activation = nn.ReLU(inplace=True)  # of a norm, whose backward reads its input alone
        self.fc2 = ConvNorm(int(dim * ratio), dim, weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class SqueezeExcite(nn.Module):
    """x times a gate for each channel that looks at the mean of all pixels. Source: arXiv 1709.01507."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1, bias=bias)
        self.activation = activation()
        self.fc2 = nn.Conv2d(hidden, dim, 1, bias=bias)

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, 1, 1), in (0, 1)."""
        return torch.sigmoid(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def make_divisible(value: float, divisor: int = 8, limit: float = 0.9) -> int:
    """The multiple of `divisor` nearest to `value`, but not below `limit` of it: the rule for widths in mobile
    networks. timm's squeeze and excitation has limit=0."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * value else rounded
