"""Maps that are filled up with zeros to whole windows, patches that become pixels, and convolutions in their place."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import ConvNorm


def any_free(sizes: Sequence[int]) -> bool:
    """Whether a size is left free in an export that is being traced. A branch that asks for it would fix it."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def fill(x: Tensor, multiple: int | Sequence[int] = 1, least: int = 1) -> Tensor:
    """A map (B, C, H, W) with zeros below and on the right; `y[..., :H, :W]` crops what is made of it back.

    Args:
        x: map to fill up.
        multiple: divisor of the new height and width; one number for both, or two.
        least: lower bound of the new height and width, itself such a multiple.
    """
    multiples = (multiple, multiple) if isinstance(multiple, int) else multiple
    if any_free(x.shape[-2:]):
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # an export has imported it

        if least == 1 and all(statically_known_true(size % n == 0) for size, n in zip(x.shape[-2:], multiples)):
            return x
        missing = [torch.sym_max(least, (size + n - 1) // n * n) - size for size, n in zip(x.shape[-2:], multiples)]
        return F.pad(x, (0, missing[1], 0, missing[0]))
    bottom, right = (max(least - size, -size % n) for size, n in zip(x.shape[-2:], multiples))
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


class Patches(nn.Conv2d):
    """Patches that do not overlap become pixels, through a linear layer. The map is filled up to whole patches.

    Args:
        in_dim, dim: channels of the input and of the output.
        side: side of a patch.
        bias: whether a bias is added.
    """

    def __init__(self, in_dim: int, dim: int, side: int, bias: bool = True):
        super().__init__(in_dim, dim, side, side, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(fill(x, self.stride[0]))


def relu_convs(in_channels: int, hidden: int) -> list[nn.Module]:
    """What stands before the patches of LV-ViT (arXiv 2104.10858) and VOLO: three convolutions with batch norms and
    ReLU, one of 7x7 and stride 2, and two of 3x3."""
    layers: list[nn.Module] = []
    for before, kernel_size, stride in ((in_channels, 7, 2), (hidden, 3, 1), (hidden, 3, 1)):
        layers += [ConvNorm(before, hidden, kernel_size, stride), nn.ReLU(inplace=True)]
    return layers


def conv_stem(in_channels: int, dim: int) -> nn.Sequential:
    """Four 3x3 convolutions with batch norms and GELU between, the first and the last of stride 2: an image becomes a
    map of `dim` channels, its size divided by four and rounded up."""
    half = dim // 2
    return nn.Sequential(
        ConvNorm(in_channels, half, 3, stride=2, bias=True),
        nn.GELU(),
        ConvNorm(half, half, 3, bias=True),
        nn.GELU(),
        ConvNorm(half, half, 3, bias=True),
        nn.GELU(),
        ConvNorm(half, dim, 3, stride=2, bias=True),
    )
