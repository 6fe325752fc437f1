"""ELA and its relatives: plug-ins that multiply a map by gates.

ELA: "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", arXiv 2403.01123. There is no official
code. What the abstract leaves open (the table of variants) follows public re-implementations.
Coordinate Attention: arXiv 2103.02907; https://github.com/houqb/CoordAttention (MIT).
SE: arXiv 1709.01507. CBAM: arXiv 1807.06521; https://github.com/Jongchan/attention-module (MIT).

ELA reads a map x (B, C, H, W) through two strips, and one convolution and one group norm serve both:

    z_h = mean over W (B, C, H);   z_w = mean over H (B, C, W)
    g_h = sigmoid(GN(conv(z_h)));  g_w = sigmoid(GN(conv(z_w)))
    out(b, c, i, j) = x(b, c, i, j) · g_h(b, c, i) · g_w(b, c, j)

Swapping height and width swaps the output. No statistic is of the batch: the gates of an image do not depend on the
others, in training either, so that ELA trains with one image on each device. Coordinate Attention joins the strips,
reduces their channels behind a batch norm, and has a convolution of its own for each. All means are over axes, which
every exporter knows.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import ConvNorm, Pointwise, SqueezeExcite
from ..layers.plugins import register_plugin


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a map lie side by side; outside of traced graphs, where nothing hangs on it."""
    return not torch.compiler.is_compiling() and x.is_contiguous(memory_format=torch.channels_last)


def strip_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the rows (B, C, H) and of the columns (B, C, W) of a map (B, C, H, W)."""
    if not channels_last(x):
        return x.mean(3), x.mean(2)
    pixels = x.permute(0, 2, 3, 1)  # of which a CPU takes the same means ten times as fast
    return pixels.mean(2).transpose(1, 2), pixels.mean(1).transpose(1, 2)


def in_order_of(x: Tensor, gate: Tensor) -> Tensor:
    """A gate (B, C, ., .) in the dtype and the memory order of the map that it multiplies: a product of mixed orders
    takes several times as long."""
    gate = gate.to(x.dtype)  # autocast has norms in float32
    return gate.contiguous(memory_format=torch.channels_last) if channels_last(x) else gate


class StripGates(nn.Module):
    """x times a gate for each row and one for each column, of every channel. `forward(x (B, C, H, W))` -> the same."""

    map_kind = "gate"  # what a map of `attention_maps` belongs to

    @abstractmethod
    def gates_of(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The gates of the rows and of the columns, in (0, 1), of their means (B, C, H) and (B, C, W)."""

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gates of the rows (B, C, H) and of the columns (B, C, W) of a map."""
        return self.gates_of(*strip_means(x))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.gates(x)
        return x * in_order_of(x, rows.unsqueeze(3)) * in_order_of(x, columns.unsqueeze(2))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The mean over channels of the product of both gates, whatever the place: (B, 1, H, W)."""
        rows, columns = self.gates(x)
        return (rows.transpose(1, 2) @ columns / rows.shape[1]).unsqueeze(1)


# --- ELA -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A published form of ELA: side k of the kernel, channels of a group of the convolution, groups n of the norm."""

    kernel_size: int
    group_size: int
    num_groups: int


FORMS = {"T": Form(5, 1, 32), "B": Form(7, 1, 16), "S": Form(5, 8, 16), "L": Form(7, 8, 16)}


@register_plugin
class ELA(StripGates):
    """Efficient local attention, see above.

    Args:
        dim: channels C.
        variant: "T" or "B" (light networks), "S" (deep ones) or "L" (large ones), which sets the next three:
            T has kernels of 5, groups of one channel, and 32 groups in the norm; B 7, 1, 16; S 5, 8, 16; L 7, 8, 16.
        kernel_size: side k of the kernel, odd.
        groups: number of groups of the convolution; it divides C.
        num_groups: number of groups of the norm; it divides C.
        fit: whether `groups` and `num_groups` are lowered to the next divisors of C where they do not divide it.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. It has k · C² / groups + 2C parameters.

    Raises:
        ValueError: the channels do not divide, and `fit` is not set; says what would.
    """

    checkpoint_rules = [(r"^con1\.", r"conv."), (r"^GN\.", r"gn.")]  # as re-implementations have it

    def __init__(
        self,
        dim: int,
        variant: str = "B",
        kernel_size: int | None = None,
        groups: int | None = None,
        num_groups: int | None = None,
        fit: bool = False,
    ):
        super().__init__()
        if variant not in FORMS:
            raise ValueError(f"ELA: variant={variant!r} must be one of {', '.join(FORMS)}")
        form = FORMS[variant]
        kernel_size = form.kernel_size if kernel_size is None else kernel_size
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"ELA: kernel_size={kernel_size} must be odd, so that a kernel has a center")
        wanted = dict(
            groups=dim / form.group_size if groups is None else groups,
            num_groups=form.num_groups if num_groups is None else num_groups,
        )
        dividing = [n for n in range(1, dim + 1) if dim % n == 0]
        fitting = {name: max((n for n in dividing if n <= count), default=1) for name, count in wanted.items()}
        if fitting != wanted and not fit:
            asked = ", ".join(f"{name}={count:g}" for name, count in wanted.items())
            nearest = ", ".join(f"{name}={count}" for name, count in fitting.items())
            raise ValueError(
                f"ELA: dim={dim} channels must be divisible by the groups of the convolution and of the norm of "
                f"variant {variant}: {asked}. Give {nearest}, or fit=True, which takes these."
            )
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=fitting["groups"], bias=False)
        self.gn = nn.GroupNorm(fitting["num_groups"], dim)

    def gates_of(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        return self._gate(rows), self._gate(columns)

    def _gate(self, strip: Tensor) -> Tensor:
        norm = self.gn
        # The module refuses groups of one value, as strips of one pixel may have them
        normed = torch.group_norm(self.conv(strip), norm.num_groups, norm.weight, norm.bias, norm.eps)
        return torch.sigmoid(normed)


# --- relatives -------------------------------------------------------------------------------------------------------


@register_plugin
class CoordinateAttention(StripGates):
    """Coordinate Attention: both strips, joined, through a 1x1 convolution, batch norm and an activation; then a 1x1
    convolution for each, and sigmoids.

    Args:
        dim: channels C.
        reduction: channels over those between the convolutions.
        least: least number of channels there.
        bias: whether the convolutions have biases.
        activation: class or function that makes the activation.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Source: arXiv 2103.02907.
    """

    checkpoint_rules = [
        (r"^conv1\.", r"reduce.conv."),
        (r"^bn1\.", r"reduce.norm."),
        (r"^conv(_h|2)\.", r"rows."),  # the published MobileNetV2 numbers them
        (r"^conv(_w|3)\.", r"columns."),
    ]

    def __init__(
        self,
        dim: int,
        reduction: int = 32,
        least: int = 8,
        bias: bool = True,
        activation: Callable[[], nn.Module] = nn.Hardswish,
    ):
        super().__init__()
        hidden = max(least, dim // reduction)
        if hidden < 1:
            raise ValueError(
                f"CoordinateAttention: dim={dim} channels over reduction={reduction} leave none; least=1 keeps one"
            )
        self.reduce = ConvNorm(dim, hidden, bias=bias)
        self.activation = activation()
        self.rows, self.columns = Pointwise(hidden, dim, bias=bias), Pointwise(hidden, dim, bias=bias)

    def gates_of(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        strips = self.activation(self.reduce(torch.cat([rows, columns], dim=2).unsqueeze(3)))
        rows, columns = strips.split([rows.shape[2], columns.shape[2]], dim=2)
        return torch.sigmoid(self.rows(rows)).squeeze(3), torch.sigmoid(self.columns(columns)).squeeze(3)


@register_plugin
class SE(SqueezeExcite):
    """Squeeze and excitation: a gate for each channel, which looks at the mean of all pixels.

    Args:
        dim: channels C.
        reduction: channels over those between both layers, which are at least one.
        bias: whether the layers have biases.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Source: arXiv 1709.01507.
    """

    map_kind = "gate"
    checkpoint_rules = [(r"^(fc|excitation)\.0\.", r"fc1."), (r"^(fc|excitation)\.2\.", r"fc2.")]

    def __init__(self, dim: int, reduction: int = 16, bias: bool = True):
        super().__init__(dim, max(1, dim // reduction), bias=bias)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The mean of the gates over channels, the same everywhere: (B, 1, H, W)."""
        return self.gate(x).mean(1, keepdim=True).expand(-1, -1, *x.shape[-2:])


@register_plugin
class CBAM(nn.Module):
    """Convolutional block attention: a gate for each channel, then one for each pixel.

        channels = sigmoid(mlp(mean over pixels) + mlp(maximum over pixels));  y = x · channels
        pixels = sigmoid(norm(conv([maximum over channels of y, mean over channels of y])));  out = y · pixels

    Args:
        dim: channels C.
        reduction: channels over those inside the MLP, which are at least one.
        kernel_size: side of the convolution's kernel, odd.
        bias: whether the layers of the MLP have biases.
        norm: whether a batch norm follows the convolution.
        mean_first: whether the convolution reads the mean before the maximum.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Source: arXiv 1807.06521.
    """

    map_kind = "gate"
    checkpoint_rules = [
        (r"^ChannelGate\.mlp\.1\.", r"fc1."),
        (r"^ChannelGate\.mlp\.3\.", r"fc2."),
        (r"^SpatialGate\.spatial\.conv\.", r"spatial.conv."),
        (r"^SpatialGate\.spatial\.bn\.", r"spatial.norm."),
    ]

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        kernel_size: int = 7,
        bias: bool = True,
        norm: bool = True,
        mean_first: bool = False,
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"CBAM: kernel_size={kernel_size} must be odd, so that a kernel has a center")
        hidden = max(1, dim // reduction)
        self.fc1, self.fc2 = nn.Linear(dim, hidden, bias), nn.Linear(hidden, dim, bias)
        self.spatial: nn.Module
        if norm:
            self.spatial = ConvNorm(2, 1, kernel_size)
            self.spatial.norm.momentum = 0.01
        else:
            self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.mean_first = mean_first

    def _by_channel(self, x: Tensor) -> Tensor:
        both = torch.stack([x.mean((2, 3)), x.amax((2, 3))])
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(both))).sum(0))[..., None, None]

    def _by_pixel(self, x: Tensor) -> Tensor:
        mean, most = x.mean(1, keepdim=True), x.amax(1, keepdim=True)
        both = (mean, most) if self.mean_first else (most, mean)
        return torch.sigmoid(self.spatial(torch.cat(both, dim=1)))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self._by_channel(x)
        return x * self._by_pixel(x)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The gates of the pixels, whatever the place: (B, 1, H, W)."""
        return self._by_pixel(x * self._by_channel(x))
