"""HyperZZW (Terminator): weights that slow networks make of coordinates, times the map, applied to the map again.

"HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction", arXiv 2401.17948;
https://github.com/hyperevolnet/Terminator, which holds no code any more, and never held a license or weights. The
formulas and the names of parameters are those of its commit 67e773a of July 2024.

A slow network W makes a hyper-kernel of the coordinates x of a grid on [-1, 1]², by filters f_i(x) = sin(A_i x + a_i):

    z_0 = f_0(x);   z_i = f_i(x) · L_i(z_{i-1}) + p;   W = L_out(z_n)

Globally, each channel of a map X (S x S) is multiplied by its kernel, element by element, and the product is a matrix
that multiplies another map Z of the same channel:

    Ŵ = X · W;   out = Ŵ Z = Σ_k Ŵ_ik Z_kj          # S³ operations a channel, and no weight for a pair of pixels

Locally, the kernel (k x k for each channel) is modulated by the pooled map, and is a depth-wise convolution of another
map. The paper's summary calls the operator linear; the code has the matrix product.

The release takes statistics of the batch in inference, too: its answer for an image depends on the other images. Here
running averages stand for them; `batch_statistics=True` is the release.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.checks import check_flags, check_number
from ..kernels.dispatch import without_autocast
from ..registry import MIXERS
from .layers import Blocks, Head, LayerNorm2d, Patches, Pointwise, any_free
from .layers.position import resize_table
from .skeletons.backbone import Backbone, Notes
from .skeletons.options import check_whole, is_whole, per_stage
from .zoo import Rules, Variant, register


def as_map(size: Sequence[int]) -> tuple[int, int]:
    """Height and width of a grid with one axis or two; one axis is a single row."""
    height, width = (1, *size)[-2:]
    return height, width


# --- slow networks ---------------------------------------------------------------------------------------------------


class PooledContext(nn.Module):
    """What a batch looks like on a grid: the mean over its images of a map (B, C, H, W), pooled to the cells of a
    kernel, (cells, C). In inference that is a running average, which no image of the batch changes.

    Args:
        dim: channels C.
        size: lengths of the axes of the kernel: one, or two.
        batch_statistics: whether inference takes the mean of its batch, too.
    """

    momentum = 0.1
    running_mean: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, dim: int, size: Sequence[int], batch_statistics: bool = False):
        super().__init__()
        self.size = as_map(size)
        self.register_buffer("running_mean", None if batch_statistics else torch.zeros(math.prod(size), dim))
        self.register_buffer("num_batches_tracked", None if batch_statistics else torch.tensor(0))

    @property
    def of_batch(self) -> bool:
        """Whether the result depends on the map that is given now."""
        return self.training or self.running_mean is None

    def forward(self, x: Tensor) -> Tensor:
        if not self.of_batch:
            assert self.running_mean is not None
            return self.running_mean
        mean = F.adaptive_avg_pool2d(x.mean(0, keepdim=True), self.size).flatten(2)[0].mT
        if self.running_mean is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        return mean


class Kernel(nn.Module):
    """What a slow network gave once and for all: `forward()` gives it, whatever the map."""

    kernel: Tensor

    def __init__(self, kernel: Tensor):
        super().__init__()
        self.register_buffer("kernel", kernel)

    def forward(self, x: Tensor | None = None) -> Tensor:
        return self.kernel


class SlowNet(nn.Module):
    """A hyper-kernel (1, dim, h, w), see above. It is computed in the dtype of the parameters, also under autocast.

    The frequencies A_i begin at thousands, so that their phases do not survive a conversion of the parameters to half
    precision, which raises a RuntimeError: `fuse()` the network first, which keeps kernels in the place of slow
    networks.

    Args:
        size: lengths of the axes of the grid: one, for a kernel of one row, or two.
        dim: channels of the kernel.
        hidden: number of filters.
        layers: number n of layers.
        context: channels of the map that modulates the kernel; None for a kernel of coordinates alone. Then, with g of
            the pooled map, z = (stop_gradient(z) + 0.1 z / ‖z‖) · M_i(g) follows every layer, the norm over the grid.
        batch_statistics: as of `PooledContext`.
        omega: scale of the frequencies in the beginning.

    `forward(x)`: x (B, context, H, W) where there is a context.
    """

    def __init__(
        self,
        size: Sequence[int],
        dim: int,
        hidden: int,
        layers: int = 2,
        context: int | None = None,
        batch_statistics: bool = False,
        omega: float = 2000.0,
    ):
        super().__init__()
        self.size, self.omega = tuple(size), omega
        self.filters = nn.ModuleList(nn.Linear(len(size), hidden) for _ in range(layers + 1))
        self.linears = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.out = nn.Linear(hidden, dim)
        self.position = nn.Parameter(torch.zeros(1, 1, *as_map(size)))
        self.context: PooledContext | None = None
        if context is not None:
            self.context = PooledContext(context, size, batch_statistics)
            self.reduce = nn.Linear(context, hidden)
            self.expand = nn.Linear(hidden, hidden)
            self.modulations = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.reset_weights()

    @torch.no_grad()
    def reset_weights(self) -> None:
        """The authors multiply the last layer by 1 / √cells in the first forward pass, and again in that of a network
        that was loaded; here it begins so."""
        for i, layer in enumerate(self.filters):
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()
            gamma = torch.distributions.Gamma(torch.full_like(layer.weight, 6 / (i + 1)), 1.0, validate_args=False)
            layer.weight.mul_(2 * math.pi * self.omega * gamma.sample())
            nn.init.zeros_(layer.bias)
        for layer in (*self.linears, *(self.modulations if self.context is not None else ())):
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            nn.init.ones_(layer.bias)
        nn.init.kaiming_uniform_(self.out.weight, nonlinearity="linear")
        self.out.weight.mul_(math.prod(self.size) ** -0.5)
        nn.init.zeros_(self.out.bias)
        nn.init.zeros_(self.position)

    def forward(self, x: Tensor | None = None) -> Tensor:
        with without_autocast(self.position):
            return self._kernel(x)

    def _kernel(self, x: Tensor | None) -> Tensor:
        wide = self.position.dtype
        if wide in (torch.float16, torch.bfloat16):
            raise RuntimeError(
                f"SlowNet: its filters are in {wide}, where their phases are lost: convert the network to half "
                "precision after eval() and fuse(), or use autocast"
            )
        axes = [torch.linspace(-1, 1, n, dtype=wide, device=self.position.device) for n in self.size]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        position = self.position.view(-1, 1)
        if self.context is not None:
            seen = F.gelu(_linear(self.expand, _linear(self.reduce, self.context(x).to(wide))))
        z = torch.sin(_linear(self.filters[0], places))
        for i, layer in enumerate(self.linears):
            z = torch.addcmul(position, torch.sin(_linear(self.filters[i + 1], places)), _linear(layer, z))
            if self.context is not None:
                z = torch.add(z.detach(), F.normalize(z, dim=0), alpha=0.1) * _linear(self.modulations[i], seen)
        return _linear(self.out, z).mT.view(1, -1, *as_map(self.size))

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """The kernel itself, where no map changes it."""
        return self if self.context is not None and self.context.of_batch else Kernel(self())


def _linear(layer: Any, x: Tensor) -> Tensor:
    """A linear layer in the dtype of x."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _for(x: Tensor, kernel: Tensor) -> Tensor:
    """A kernel or a table of positions (1, C, h, w) for a map: in its size and dtype."""
    return resize_table(kernel, x.shape[-2:]).to(x.dtype)


# --- operators -------------------------------------------------------------------------------------------------------


def standardize(x: Tensor) -> Tensor:
    """Every channel of every image less its mean, over its standard deviation: (B, C, H, W) -> the same."""
    return F.layer_norm(x.flatten(2), (x.shape[2] * x.shape[3],)).view(x.shape)


def global_zzw(weights: Tensor, x: Tensor) -> Tensor:
    """The product Ŵ Z of the rows of one map and the columns of another, channel by channel.

    Maps that are no squares are ours: the columns of `weights` are resized to as many as there are rows.

    Args:
        weights: Ŵ, (B, C, H, W).
        x: Z, (B, C, H, W).
    """
    height, width = x.shape[-2:]
    if any_free((height, width)) or height != width:
        weights = resize_table(weights, (height, height), "bilinear")
    return weights @ x


def gate(kernel: Tensor, x: Tensor) -> Tensor:
    """HyperZZW by elements, which makes scores: x · (x · kernel)."""
    return x * (x * kernel)


class LocalZZW(nn.Module):
    """A depth-wise convolution of one map with the kernel that the other one modulates; then the channels are mixed:
    GELU(standardize over the batch(linear(conv))).

    Args:
        dim: channels C.
        size: lengths of the axes of the kernel, odd: one, or two.
        hidden, layers: number of filters, and of layers, of the slow network.
        batch_statistics: whether inference takes statistics of its batch.
        omega: as of `SlowNet`.

    `forward(x1, x2)`: maps (B, C, H, W) that make the kernel and that are convolved -> (B, C, H, W).
    """

    def __init__(
        self,
        dim: int,
        size: Sequence[int],
        hidden: int = 32,
        layers: int = 2,
        batch_statistics: bool = False,
        omega: float = 2000.0,
    ):
        super().__init__()
        self.slow = SlowNet(size, dim, hidden, layers, dim, batch_statistics, omega)
        self.mixer = Pointwise(dim, dim)
        self.norm = nn.BatchNorm2d(dim, affine=False, track_running_stats=not batch_statistics)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        kernel = self.slow(x1).transpose(0, 1).to(x2.dtype)
        padding = [n // 2 for n in kernel.shape[2:]]
        y = self.norm(self.mixer(F.conv2d(x2, kernel, padding=padding, groups=x2.shape[1])))
        return F.gelu(y).contiguous()


class ChannelInteraction(nn.Module):
    """x times a score for each channel, from the mean of the channel and a kernel over the channels.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, hidden: int = 32, omega: float = 2000.0):
        super().__init__()
        self.slow = SlowNet((dim,), 1, hidden, omega=omega)

    def forward(self, x: Tensor) -> Tensor:
        score = gate(self.slow()[0, 0].to(x.dtype), x.mean((2, 3)))
        return x * torch.sigmoid(score)[..., None, None]


class Interaction(nn.Module):
    """x times a score for each element, from the means over channels and over places of another map y, a kernel over
    the places and one over the channels.

    `forward(y, x)`: maps (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: channels C.
        size: lengths of the axes of the maps for which the kernel is made: one, or two.
        hidden: numbers of filters of the slow networks over channels and over places.
        omega: as of `SlowNet`.
    """

    def __init__(self, dim: int, size: Sequence[int], hidden: Sequence[int] = (16, 64), omega: float = 2000.0):
        super().__init__()
        self.channels = SlowNet((dim,), 1, hidden[0], omega=omega)
        self.places = SlowNet(size, 1, hidden[1], omega=omega)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        places = gate(_for(x, self.places()), y.mean(1, keepdim=True))
        channels = gate(self.channels()[0, 0].to(x.dtype), y.mean((2, 3)))[..., None, None]
        return x * torch.sigmoid(places * channels)


class RGU(nn.Module):
    """Recursive gated unit: Y(GELU(standardize(K x · Q V x)) + p), of 1x1 convolutions and a table p.

    Args:
        dim: channels C.
        size: lengths of the axes of the table: one, or two.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, size: Sequence[int]):
        super().__init__()
        self.k, self.v, self.q, self.y = (Pointwise(dim, dim) for _ in range(4))
        self.position = nn.Parameter(torch.zeros(1, 1, *as_map(size)))
        self.reset_weights()

    def reset_weights(self) -> None:
        for layer in (self.k, self.v, self.q, self.y):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.position)

    def forward(self, x: Tensor) -> Tensor:
        gated = self.k(x) * self.q(self.v(x))
        return self.y(F.gelu(standardize(gated)) + _for(x, self.position))


# Of the four local branches: the maps that make the kernel and that are convolved.
LOCAL = {"1": ("x", "hci"), "2": ("hci", "x"), "3": ("mix", "x"), "4": ("x", "mix")}


@MIXERS.register_module()
class HyperZZW(nn.Module):
    """The layer of global and local HyperZZW operators: ten maps side by side, and a 1x1 convolution of them.

    As a mixer it takes maps of any size: kernels and tables are resized from `size`, which is ours.

    Args:
        dim: channels C.
        size: side of the maps for which the kernels are made, or the length of the sequences; the published layer takes
            no others.
        out_dim: channels of the output; C by default.
        layers: number of layers of the slow network of the global kernel.
        hidden: number of filters of that slow network.
        local_hidden, local_layers: number of filters, and of layers, of the slow networks of the local kernels.
        channel_hidden: number of filters of the slow network over the channels.
        interact_hidden: numbers of filters of the slow networks of the interaction, over channels and over places.
        kernel_sizes: sides of the four local kernels, odd.
        earlier: number of earlier maps that stand beside the ten: 0, 1 or 2.
        sequence: whether maps are sequences (B, C, 1, L) and kernels have one axis. Their code was never released; here
            Ŵ and Z are multiplied element by element, at a cost that is linear, as the paper says of its operator.
        batch_statistics: whether inference takes statistics of its batch, as the release does.
        omega: scale of the frequencies of the slow networks in the beginning.

    `forward(x (B, C, H, W), *earlier (B, c, H, W)) -> (B, out_dim, H, W)`; c divides C.
    """

    def __init__(
        self,
        dim: int,
        size: int = 14,
        out_dim: int | None = None,
        layers: int = 2,
        hidden: int = 64,
        local_hidden: int = 32,
        local_layers: int = 2,
        channel_hidden: int = 32,
        interact_hidden: Sequence[int] = (16, 64),
        kernel_sizes: Sequence[int] = (3, 9, 5, 7),
        earlier: int = 0,
        sequence: bool = False,
        batch_statistics: bool = False,
        omega: float = 2000.0,
    ):
        super().__init__()
        wholes = dict(size=size, layers=layers, local_layers=local_layers)
        wholes |= dict(hidden=hidden, local_hidden=local_hidden, channel_hidden=channel_hidden)
        for name, value in wholes.items():
            check_whole(f"HyperZZW.{name}", [value])
        interact_hidden = per_stage("interact_hidden", interact_hidden, 2, "kernels, over channels and over places")
        check_whole("HyperZZW.interact_hidden", interact_hidden)
        odd = isinstance(kernel_sizes, (list, tuple)) and all(is_whole(k) and k % 2 for k in kernel_sizes)
        if not odd or len(kernel_sizes) != len(LOCAL) or min(kernel_sizes) < 1:
            raise ValueError(f"HyperZZW: kernel_sizes={kernel_sizes!r} must be four odd numbers")
        check_number(omega, "HyperZZW.omega", positive=True)
        check_flags(**{"HyperZZW.sequence": sequence, "HyperZZW.batch_statistics": batch_statistics})
        if earlier not in (0, 1, 2):
            raise ValueError(f"HyperZZW: earlier={earlier} must be 0, 1 or 2")
        self.sequence = sequence
        axes = 1 if sequence else 2
        self.slow = SlowNet((size,) * axes, dim, hidden, layers, omega=omega)
        self.rgu1, self.rgu2 = RGU(dim, (size,) * axes), RGU(dim, (size,) * axes)
        self.mix = Pointwise(dim, dim)
        self.hci = ChannelInteraction(dim, channel_hidden, omega)
        self.interact = Interaction(dim, (size,) * axes, interact_hidden, omega)
        self.local = nn.ModuleDict(
            {
                name: LocalZZW(dim, (side,) * axes, local_hidden, local_layers, batch_statistics, omega)
                for name, side in zip(LOCAL, kernel_sizes)
            }
        )
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.zeros(1)) for name in LOCAL})
        self.bottleneck = Pointwise((10 + earlier) * dim, dim if out_dim is None else out_dim)

    def forward(self, x: Tensor, *earlier: Tensor) -> Tensor:
        x = x.contiguous()  # channel by channel, as the products and the standardizations read it
        weights = x * _for(x, self.slow())
        fast = standardize(self.rgu2(weights) + self.rgu1(x))
        maps = dict(x=x, mix=standardize(self.mix(x)), hci=standardize(self.hci(x)))
        product = torch.mul if self.sequence else global_zzw
        out, out_x, out_hci = (product(weights, y) for y in (fast, maps["mix"], maps["hci"]))
        convolved = maps
        if x.device.type == "cpu":  # where the gradients of the convolutions take a third of the time then
            convolved = {name: y.contiguous(memory_format=torch.channels_last) for name, y in maps.items()}
        l1, l2, l3, l4 = (
            self.local[name](maps[first], convolved[second]) + self.biases[name]
            for name, (first, second) in LOCAL.items()
        )
        repeated = [[y] * (x.shape[1] // y.shape[1]) for y in earlier] + [[], []]
        maps_in_order = [out, l2, *repeated[0], fast, out_x, l1, F.silu(out), l3, out_hci, l4, *repeated[1]]
        return self.bottleneck(torch.cat([*maps_in_order, self.interact(out, x)], dim=1))

    def weight_norms(self) -> Tensor:
        """What the release's regularization sums: the lengths of all parameters but those of slow networks and RGUs,
        and 1e-6 times those of the weights of these (but for the slow networks over channels)."""
        kernels = [part for part in self.modules() if isinstance(part, (SlowNet, RGU))]
        inside = {id(parameter) for part in kernels for parameter in part.parameters()}
        outside = [parameter for parameter in self.parameters() if id(parameter) not in inside]
        weights = [
            layer.weight
            for part in kernels
            if part not in (self.hci.slow, self.interact.channels)
            for layer in part.modules()
            if isinstance(layer, (nn.Linear, nn.Conv2d))
        ]
        lengths = [torch.stack([torch.linalg.vector_norm(w) for w in group]).sum() for group in (outside, weights)]
        return lengths[0] + 1e-6 * lengths[1]


# --- network ---------------------------------------------------------------------------------------------------------

GROUPS = 12  # of channels, of a block's norm


class GroupStandardize(nn.Module):
    """Twelve groups of channels: the first, third, ... are standardized over the batch, the others image by image.

    Args:
        dim: channels, a multiple of 12.
        batch_statistics: whether inference takes statistics of its batch.
    """

    def __init__(self, dim: int, batch_statistics: bool = False):
        super().__init__()
        self.norm = nn.BatchNorm2d(dim // 2, affine=False, track_running_stats=not batch_statistics)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = (part.flatten(1, 2) for part in x.unflatten(1, (GROUPS // 2, 2, -1)).unbind(2))
        parts = [y.unflatten(1, (GROUPS // 2, -1)) for y in (self.norm(even), standardize(odd))]
        return torch.stack(parts, dim=2).flatten(1, 3)


class SlowFastBlock(nn.Module):
    """A block without a residual connection: dropout(GELU(group standardize(layer(x, *earlier))) + bias).

    Args:
        layer: the `HyperZZW` layer.
        dim: channels of its output.
        dropout: share of the channels that training leaves out.
        batch_statistics: whether inference takes statistics of its batch.
    """

    def __init__(self, layer: HyperZZW, dim: int, dropout: float = 0.0, batch_statistics: bool = False):
        super().__init__()
        self.layer = layer
        self.norm = GroupStandardize(dim, batch_statistics)
        self.bias = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor, *earlier: Tensor) -> Tensor:
        return self.dropout(F.gelu(self.norm(self.layer(x, *earlier))) + self.bias)


class Terminator(Backbone):
    """The slow-fast network: blocks of `HyperZZW` on the pixels, all at the size of the image.

    As released, it takes square images of `img_size` pixels and no others. The rest is ours: other sizes, patches,
    sequences, and the dense form, whose levels are the blocks, each behind a layer norm.

    Args:
        dims: channels behind each block, multiples of 12.
        layers: number of layers of the slow networks of global kernels; one, or one for each block.
        earlier: for each block the numbers (from 0) of up to two earlier blocks whose maps it reads, too. Their
            channels divide those that the block reads.
        img_size: side of the images, or the number of steps of the sequences.
        any_size: whether images of any height and width are taken: hyper-kernels and tables are resized, and where maps
            are no squares, the columns of the matrices Ŵ to as many as they have rows.
        patch_size: side of the patches that a convolution makes pixels; at 1, as released, there is none.
        sequence: whether inputs are sequences (B, in_channels, L), see `HyperZZW`, or images whose pixels are read row
            by row, as in sequential MNIST and CIFAR-10; maps are (B, C, 1, L).
        hidden, local_hidden, local_layers, channel_hidden, interact_hidden, kernel_sizes, batch_statistics, omega: as
            of `HyperZZW`.
        dropout: share of the channels that training leaves out; one, or one for each block.
        slow_loss: weight of the slow neural loss, the mean squared distance between the channel sums of the global
            kernels, summed over all pairs of blocks. 1 in the paper's training.
        weight_norm: weight of the regularization, see `HyperZZW.weight_norms`. 5e-5 in the paper's training on
            CIFAR-10, 4e-5 on CIFAR-100. `ImageClassifier` adds both to its loss.
        **common: of `Backbone`.
    """

    level_modules = "blocks"
    trunc_normal = ()
    fixed_sizes = {
        suffix: dict.fromkeys(
            ("height", "width"),
            "kernels are of one size; the option any_size=True, without statistics of the batch, sets it free",
        )
        for suffix in (".onnx", ".pt2")
    }

    def __init__(
        self,
        dims: Sequence[int] = (12, 36, 72, 144, 288),
        layers: int | Sequence[int] = (3, 2, 2, 2, 2),
        earlier: Sequence[Sequence[int]] = ((), (), (0,), (1,), (2, 1)),
        *,
        img_size: int = 32,
        any_size: bool = False,
        patch_size: int = 1,
        sequence: bool = False,
        hidden: int = 64,
        local_hidden: int = 32,
        local_layers: int = 2,
        channel_hidden: int = 32,
        interact_hidden: Sequence[int] = (16, 64),
        kernel_sizes: Sequence[int] = (3, 9, 5, 7),
        batch_statistics: bool = False,
        omega: float = 2000.0,
        dropout: float | Sequence[float] = (0.0, 0.05, 0.05, 0.05, 0.05),
        slow_loss: float = 0.0,
        weight_norm: float = 0.0,
        **common,
    ):
        count = len(dims)
        super().__init__(dims, [patch_size] * count, **common)
        self.dims, self.img_size, self.patch_size = tuple(dims), img_size, patch_size
        self.any_size, self.sequence = any_size, sequence
        self.slow_loss, self.weight_norm = slow_loss, weight_norm
        if any_size and not batch_statistics:
            self.fixed_sizes = {}
        reads = [self.in_channels if patch_size == 1 else dims[0], *dims[:-1]]
        self.earlier = per_stage("earlier", tuple(tuple(blocks) for blocks in earlier), count, "blocks")
        self._check_earlier(reads)
        self.stem = nn.Identity() if patch_size == 1 else Patches(self.in_channels, dims[0], patch_size)
        of_all: dict[str, Any] = dict(
            size=-(-img_size // patch_size),
            hidden=hidden,
            local_hidden=local_hidden,
            local_layers=local_layers,
            channel_hidden=channel_hidden,
            interact_hidden=interact_hidden,
            kernel_sizes=kernel_sizes,
            sequence=sequence,
            batch_statistics=batch_statistics,
            omega=omega,
        )
        layers = per_stage("layers", layers, count, "blocks")
        dropout = per_stage("dropout", dropout, count, "blocks")
        self.blocks = Blocks(
            SlowFastBlock(
                HyperZZW(reads[i], out_dim=dim, layers=layers[i], earlier=len(self.earlier[i]), **of_all),
                dim,
                dropout[i],
                batch_statistics,
            )
            for i, dim in enumerate(dims)
        )
        if self.num_classes is not None:
            self.head = Head(dims[-1], self.num_classes)
        else:
            del self.blocks[self.out_indices[-1] + 1 :]  # that nobody would read
            for i in sorted({*self.out_indices}):
                self.norms[str(i)] = LayerNorm2d(dims[i])
        self.finish()

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        super().check_values(given)
        dims = given.get("dims", (GROUPS,))
        if isinstance(dims, str) or not isinstance(dims, Sequence) or not dims:
            raise ValueError(f"dims must have one entry for each block, got {dims!r:.60}")
        if wrong := [dim for dim in dims if not is_whole(dim) or dim < 1 or dim % GROUPS]:
            raise ValueError(f"dims must be multiples of {GROUPS}, the groups of a block's norm, got {wrong[0]!r:.60}")
        for name in ("img_size", "patch_size", "hidden", "local_hidden", "channel_hidden"):
            check_whole(name, [given.get(name, 1)])
        for name in ("slow_loss", "weight_norm"):
            if not isinstance(given.get(name, 0), (int, float)) or not 0 <= given.get(name, 0) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {given[name]!r:.60}")
        if given.get("sequence") and given.get("patch_size", 1) != 1:
            raise ValueError(f"patch_size={given['patch_size']} makes patches of images; sequence=True takes 1")

    def _check_earlier(self, reads: Sequence[int]) -> None:
        for i, (blocks, channels) in enumerate(zip(self.earlier, reads)):
            if len(blocks) > 2 or any(not is_whole(k) or not 0 <= k < i for k in blocks):
                raise ValueError(f"earlier: block {i} must read at most two blocks before it, got {blocks}")
            for k in blocks:
                if channels % self.dims[k]:
                    raise ValueError(
                        f"earlier: block {i} reads {channels} channels, which the {self.dims[k]} of block {k} do not "
                        "divide"
                    )

    # --- the loop ----------------------------------------------------------------------------------------------------

    def check(self, image: Tensor) -> Tensor:
        """As of `Backbone`; without `any_size`, of `img_size` alone.

        Raises:
            ValueError: the height or the width is another one.
        """
        if self.sequence and isinstance(image, Tensor) and image.ndim in (3, 4):
            image = image.flatten(2).unsqueeze(2)
        image = super().check(image)
        height, width = image.shape[-2:]
        if not self.any_size and (height, width) != (1 if self.sequence else self.img_size, self.img_size):
            built, got = (
                (f"sequences of {self.img_size} steps", f"{width}")
                if self.sequence
                else (f"square images of {self.img_size} x {self.img_size} pixels", f"{height} x {width}")
            )
            raise ValueError(
                f"{type(self).__name__} was built for {built}, got {got}: its kernels are of that size. Resize the "
                f"input, or build the network with another img_size={self.img_size}, or with any_size=True, which "
                "resizes the kernels."
            )
        return image

    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        x = self.stem(image)
        del image  # `check` may have copied it
        maps: list[Tensor] = []
        for block, others in zip(self.blocks, self.earlier):
            x = self.blocks.run(block, x, *(maps[k] for k in others))
            maps.append(x)
            yield x

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        return [(1, height * width)] * len(self.out_indices) if self.sequence else super().map_sizes(height, width)

    def frozen_parts(self) -> list[nn.Module]:
        return [self.stem, *self.blocks[: self.frozen_stages]]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(stem=r"^stem", blocks=[(r"^blocks\.(\d+)", None), (r"^norms", (99999,))], head=self.head_groups())

    # --- training ----------------------------------------------------------------------------------------------------

    def feedback(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """As of `Backbone`: the slow neural loss "slow" and the regularization "norms", which are of the parameters,
        whatever the batch."""
        layers: list[Any] = [block.layer for block in self.blocks]
        found = {}
        if self.slow_loss:
            sums = torch.cat([layer.slow().sum(1) for layer in layers])
            distances = (sums.unsqueeze(1) - sums).square().flatten(2).mean(-1)
            found["slow"] = self.slow_loss * distances.triu(1).sum()
        if self.weight_norm:
            found["norms"] = self.weight_norm * torch.stack([layer.weight_norms() for layer in layers]).sum()
        if not found:
            return {}
        return {"loss": torch.stack([*found.values()]).sum()} | {name: part.detach() for name, part in found.items()}


# The accuracies are those of the authors' logs, the best of each training: 95.3 % of CIFAR-10 and 75.7 % of CIFAR-100.
VARIANTS = {
    "hyperzzw_cifar10": Variant({}, 1_336_855, size=32, classes=10, crop=1.0),
    "hyperzzw_cifar100": Variant({}, 1_362_865, size=32, classes=100, crop=1.0),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"(^|\.)train_length$", None),
    (r"\.fast_multi_branch\.bias(\d)$", r".layer.biases.\1"),
    (r"\.fast_multi_branch\.", r".layer."),
    (r"\.hyper_interact\.", r".interact."),
    (r"\.interact\.slow_net_gc(_hi)?\.", r".interact.channels."),
    (r"\.channel_mixer_hci\.", r".hci."),
    (r"\.channel_mixer_mlp\.", r".mix."),
    (r"\.slow_net_gc?\.", r".slow."),
    (r"\.slow_net_l(\d)\.", r".local.\1.slow."),
    (r"\.local_interact_conv_(\d)\.", r".local.\1."),
    (r"\.Fast_Kernel_rgu\.", r".rgu1."),
    (r"\.Fast_Kernel_rgu_2\.", r".rgu2."),
    (r"\.bottleneck_layer\.", r".bottleneck."),
    # of the operators, alone, too
    (r"(^|\.)slow_net_gc(_hi)?\.", r"\1channels."),
    (r"(^|\.)slow_net_gs(_hi)?\.", r"\1places."),
    (r"(^|\.)Kernel\.", r"\1"),
    (r"(^|\.)(fast_)?bias_pk?$", r"\1position"),
    (r"(^|\.)channel_mixer\.", r"\1mixer."),
    (r"(^|\.)output_linear\.", r"\1out."),
    (r"(^|\.)filters\.(\d)\.linear\.", r"\1filters.\2."),
    (r"(^|\.)fast_reduce\.", r"\1reduce."),
    (r"(^|\.)fast_fc1\.", r"\1expand."),
    (r"(^|\.)fast_linears_x\.", r"\1modulations."),
    (r"(^|\.)fast_linear_([kvqy])\.", r"\1\2."),
    (r"^out_layer\.", r"head.fc."),
]

register(Terminator, VARIANTS, RULES)
