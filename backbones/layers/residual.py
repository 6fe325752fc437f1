"""What stands on residual branches: stochastic depth, layer scale, and the pre-norm block that most systems share."""

import torch
from torch import Tensor, nn

from .norm import ConvNorm, LayerNorm2d


class DropPath(nn.Module):
    """Stochastic depth: in training, the branch of a sample is dropped with this probability and else scaled up.

    Source: Huang et al., arXiv 1603.09382.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class LayerScale(nn.Module):
    """A learned factor for each channel of a map (B, C, H, W). Source: Touvron et al., arXiv 2103.17239."""

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(-1, 1, 1)


class Block(nn.Module):
    """The pre-norm block: x + position(x); x + mixer(norm1(x)); x + mlp(norm2(x)), all on maps (B, C, H, W).

    Args:
        dim: channels C.
        mixer, mlp: modules (B, C, H, W) -> (B, C, H, W).
        drop_path: rate of stochastic depth of both branches.
        layer_scale: initial value of the learned factor of both branches; None for none.
        position: a module that is added first (a depth-wise convolution), or None.
        norm: dim -> norm.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        position: nn.Module | None = None,
        norm=LayerNorm2d,
    ):
        super().__init__()
        self.position = position
        self.norm1, self.mixer = norm(dim), mixer
        self.norm2, self.mlp = norm(dim), mlp
        self.scale1 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.scale2 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.position is not None:
            x = x + self.position(x)
        x = x + self.drop_path(self.scale1(self.mixer(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class Residual(nn.Module):
    """x + branch(x). If the branch is a depth-wise `ConvNorm`, fusing puts the identity into its centre tap.

    Args:
        branch: (B, C, H, W) -> (B, C, H, W).
        drop_path: rate of stochastic depth.
    """

    def __init__(self, branch: nn.Module, drop_path: float = 0.0):
        super().__init__()
        self.branch = branch
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))

    @torch.no_grad()
    def fused(self) -> nn.Module:
        conv = self.branch
        if (
            isinstance(conv, nn.Conv2d)
            and conv.groups == conv.in_channels == conv.out_channels
            and conv.stride == (1, 1)
        ):
            row, column = (size // 2 for size in conv.kernel_size)
            conv.weight[:, 0, row, column] += 1
            return conv
        return self


def depthwise(dim: int, kernel_size: int) -> nn.Conv2d:
    """A depth-wise convolution with bias that keeps the size."""
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


def depthwise_norm(dim: int, kernel_size: int = 3, stride: int = 1, weight: float = 1.0) -> ConvNorm:
    """A depth-wise convolution without bias, and batch norm."""
    return ConvNorm(dim, dim, kernel_size, stride, groups=dim, weight=weight)
