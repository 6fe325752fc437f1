"""What stands on residual branches: stochastic depth, layer scale, and the pre-norm block that most systems share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .norm import ConvNorm, LayerNorm2d


class DropPath(nn.Module):
    """Stochastic depth: in training, the branch of a sample is dropped with this probability and else scaled up.

    `forward(x, ...)`: branches of one block share the draw; of several, a tuple comes back.
    Source: Huang et al., arXiv 1603.09382.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor, *others: Tensor):
        if not self.training or self.rate == 0:
            return (x, *others) if others else x
        keep = torch.empty(x.shape[0], dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate) / (1 - self.rate)
        kept = [y * keep.view(-1, *[1] * (y.ndim - 1)) for y in (x, *others)]
        return tuple(kept) if others else kept[0]

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class LayerScale(nn.Module):
    """A learned factor for each channel of a map (B, C, H, W), or of rows (B, N, C). Source: Touvron et al., arXiv
    2103.17239.

    Args:
        dim: channels C.
        initial: initial value of the factor.
    """

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma.view(-1, 1, 1) if x.ndim == 4 else self.gamma)


class Block(nn.Module):
    """The pre-norm block on maps (B, C, H, W): x + position(x); x + mixer(norm1(x)); x + mlp(norm2(x)).

    Tokens (B, T, C) may stand beside the map: a mixer that `takes_tokens` mixes both, any other the map alone; the MLP
    serves both, if it serves rows.

    Args:
        dim: channels C.
        mixer, mlp: modules (B, C, H, W) -> (B, C, H, W).
        drop_path: rate of stochastic depth of both branches.
        layer_scale: initial value of the learned factor of both branches; None for none.
        position: module that is added first (a depth-wise convolution), or None.
        norm: function dim -> norm.

    Attributes:
        before: module before the norm of the mixer, on the map, where plug-ins such as `TAP` have their place.
        places: names of such attributes (see `plug`); a subclass whose forward does not call them has none.

    `forward(x)` gives x, `forward(x, tokens)` both.
    """

    places: Sequence[str] = ("before",)

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        position: nn.Module | None = None,
        norm: Callable[[int], nn.Module] = LayerNorm2d,
    ):
        super().__init__()
        self.position = position
        self.before: nn.Module = nn.Identity()
        self.norm1, self.mixer = norm(dim), mixer
        self.norm2, self.mlp = norm(dim), mlp
        self.scale1 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.scale2 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        if self.position is not None:
            x = x + self.position(x)
        if tokens is None:
            x = x + self.drop_path(self.scale1(self.mixer(self.norm1(self.before(x)))))
            return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        if getattr(self.mixer, "takes_tokens", False):
            mixed = self.mixer(self.norm1(self.before(x)), self.norm1(tokens))
            x, tokens = self._add(x, tokens, self.scale1, *mixed)
        else:
            x = x + self.drop_path(self.scale1(self.mixer(self.norm1(self.before(x)))))
        return self._add(x, tokens, self.scale2, self.mlp(self.norm2(x)), self.mlp(self.norm2(tokens)))

    def _add(self, x: Tensor, tokens: Tensor, scale: nn.Module, of_x: Tensor, of_tokens: Tensor):
        of_x, of_tokens = self.drop_path(scale(of_x), scale(of_tokens))
        return x + of_x, tokens + of_tokens


class ClassBlock(Block):
    """The pre-norm block of class tokens (B, T, C) that read a map: tokens + mixer(norm1(x), norm1(tokens));
    tokens + mlp(norm2(tokens)). The map stays as it is.

    Args:
        dim, mlp, drop_path, layer_scale, norm: as of `Block`.
        mixer: module (x, tokens) -> tokens, such as `ClassAttention`.

    `forward(x (B, C, H, W), tokens (B, T, C)) -> (B, T, C)`. Source: CaiT, arXiv 2103.17239.
    """

    places: Sequence[str] = ()

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        tokens = tokens + self.drop_path(self.scale1(self.mixer(self.norm1(x), self.norm1(tokens))))
        return tokens + self.drop_path(self.scale2(self.mlp(self.norm2(tokens))))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + end(conv2(inner(relu(conv1(x)))))), of two 3x3 convolutions with batch norms.

    Args:
        in_dim, dim: channels of the input and of the output.
        stride: stride of the first convolution, and of the shortcut.
        drop_path: rate of stochastic depth.
        inner: module between the convolutions (B, dim, h, w) -> the same, or None.

    Attributes:
        inner, end: modules behind the first convolution and at the end of the branch, where plug-ins have their place.

    The shortcut is a 1x1 convolution with a batch norm where the shape changes. Source: ResNet, arXiv 1512.03385.
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 1, drop_path: float = 0.0, inner: nn.Module | None = None):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(in_dim, dim, 3, stride), ConvNorm(dim, dim, 3)
        self.inner: nn.Module = inner or nn.Identity()
        self.end: nn.Module = nn.Identity()
        changes = stride != 1 or in_dim != dim
        self.shortcut = ConvNorm(in_dim, dim, 1, stride) if changes else nn.Identity()
        self.activation = nn.ReLU(inplace=True)  # of norms and sums, whose backward reads no output
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.activation(self.conv1(x)))
        return self.activation(self.shortcut(x) + self.drop_path(self.end(self.conv2(y))))


class Residual(nn.Module):
    """x + activation(branch(x)). If the branch is a depth-wise convolution without an activation, fusing puts the
    identity into its center tap.

    Args:
        branch: module (B, C, H, W) -> (B, C, H, W).
        drop_path: rate of stochastic depth.
        activation: module without parameters on what the branch gives, or None.
    """

    def __init__(self, branch: nn.Module, drop_path: float = 0.0, activation: nn.Module | None = None):
        super().__init__()
        self.branch = branch
        self.activation = activation or nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.activation(self.branch(x)))

    @torch.no_grad()
    def fused(self) -> nn.Module:
        conv = self.branch
        if (
            isinstance(conv, nn.Conv2d)
            and isinstance(self.activation, nn.Identity)
            and conv.groups == conv.in_channels == conv.out_channels
            and conv.stride == (1, 1)
        ):
            row, column = (size // 2 for size in conv.kernel_size)
            conv.weight[:, 0, row, column] += 1
            return conv
        return self


class DualBlock(nn.Module):
    """The pre-norm block with a depth-wise 3x3 convolution (which tells positions) before the mixer, and another before
    the MLP, all on residual branches.

    Args:
        dim: channels.
        mixer, mlp: modules (B, C, H, W) -> (B, C, H, W).
        drop_path: rate of stochastic depth of both branches.
        cpe_act: whether a GELU follows the convolutions that tell positions.

    Attributes:
        before, places: as of `Block`.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Source: DaViT, arXiv 2204.03645.
    """

    places: Sequence[str] = ("before",)

    def __init__(self, dim: int, mixer: nn.Module, mlp: nn.Module, drop_path: float = 0.0, cpe_act: bool = False):
        super().__init__()
        self.position1, self.position2 = (
            Residual(depthwise(dim, 3), activation=nn.GELU() if cpe_act else None) for _ in range(2)
        )
        self.before: nn.Module = nn.Identity()
        self.norm1, self.mixer = LayerNorm2d(dim, eps=1e-5), mixer
        self.norm2, self.mlp = LayerNorm2d(dim, eps=1e-5), mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position1(x)
        x = x + self.drop_path(self.mixer(self.norm1(self.before(x))))
        x = self.position2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LocalBlock(nn.Module):
    """The pre-norm block with local mixing between mixer and MLP, and a depth-wise 3x3 convolution (which tells
    positions) first, all on residual branches.

    Args:
        dim: channels.
        mixer, local, mlp: modules (B, C, H, W) -> (B, C, H, W).
        drop_path: rate of stochastic depth of all branches but the first.
        norm: function dim -> norm.

    Attributes:
        before, places: as of `Block`.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Sources: L2ViT, arXiv 2501.16182, and S2AFormer, arXiv 2505.22195.
    """

    places: Sequence[str] = ("before",)

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        local: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        norm: Callable[[int], nn.Module] = LayerNorm2d,
    ):
        super().__init__()
        self.position1 = Residual(depthwise(dim, 3))
        self.before: nn.Module = nn.Identity()
        self.norm1, self.mixer = norm(dim), mixer
        self.local = Residual(nn.Sequential(norm(dim), local), drop_path)
        self.norm2, self.mlp = norm(dim), mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position1(x)
        x = x + self.drop_path(self.mixer(self.norm1(self.before(x))))
        x = self.local(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def depthwise(dim: int, kernel_size: int) -> nn.Conv2d:
    """A depth-wise convolution with bias that keeps the size."""
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


def depthwise_norm(dim: int, kernel_size: int = 3, stride: int = 1, weight: float = 1.0) -> ConvNorm:
    """A depth-wise convolution without bias, and batch norm."""
    return ConvNorm(dim, dim, kernel_size, stride, groups=dim, weight=weight)
