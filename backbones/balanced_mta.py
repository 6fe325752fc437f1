"""Balanced multi-task attention: a network for small satellite images, and its block for any network.

"Balanced Multi-Task Attention for Satellite Image Classification: A Systematic Approach to Achieving 97.23% Accuracy on
EuroSAT Without Pre-Training", arXiv 2510.15527; https://github.com/virAditya/satellite-image-classification-eurosat
(MIT). No trained weights are published there.

The block mixes attention to places with attention to channels by one learned number:

    out = a · CA(x) + (1 - a) · SE(x),   a = sigmoid(alpha),   alpha = 0.5 at first, and so a = 0.6225

CA is Coordinate Attention and SE squeeze and excitation (`mixers/ela.py`), without biases. Both multiply x by gates,
which take the shares in.

The network has a stem and eleven blocks of two 3x3 convolutions, with the attention at the end of the branch and
DropBlock between the convolutions, at a rate that grows with the depth. The file has the paper's two other networks
too: one of seven layers with CBAM, and a baseline of three.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import BasicBlock, ConvNorm, Head
from .layers.plugins import register_plugin
from .mixers.ela import SE, CoordinateAttention, in_order_of, strip_means
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------


@register_plugin
class BalancedMultiTaskAttention(nn.Module):
    """Attention to places and to channels in learned shares, see above.

    Args:
        dim: channels C.
        coordinate_reduction, channel_reduction: channels over those inside Coordinate Attention and inside SE.

    Attributes:
        alpha: learned number; `share` is its sigmoid, the share of the attention to places.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    map_kind = "gate"
    checkpoint_rules = [
        (r"^coord_attention\.conv1\.", r"coordinates.reduce.conv."),
        (r"^coord_attention\.bn1\.", r"coordinates.reduce.norm."),
        (r"^coord_attention\.conv_h\.", r"coordinates.rows."),
        (r"^coord_attention\.conv_w\.", r"coordinates.columns."),
        (r"^se_attention\.excitation\.0\.", r"channels.fc1."),
        (r"^se_attention\.excitation\.2\.", r"channels.fc2."),
    ]

    def __init__(self, dim: int, coordinate_reduction: int = 8, channel_reduction: int = 16):
        super().__init__()
        self.coordinates = CoordinateAttention(dim, coordinate_reduction, least=1, bias=False, activation=nn.ReLU)
        self.channels = SE(dim, channel_reduction, bias=False)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    @property
    def share(self) -> Tensor:
        """The share a of the attention to places, a number in (0, 1)."""
        return torch.sigmoid(self.alpha)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gates of rows (B, C, H, 1), columns (B, C, 1, W) and channels (B, C, 1, 1), in their shares: x is
        multiplied by rows · columns + channels."""
        means = strip_means(x)
        channels = self.channels.gate(means[0].unsqueeze(3))  # which takes the mean of all pixels, that of these means
        rows, columns = self.coordinates.gates_of(*means)
        return (self.share * rows).unsqueeze(3), columns.unsqueeze(2), (1 - self.share) * channels

    def forward(self, x: Tensor) -> Tensor:
        rows, columns, channels = (in_order_of(x, gate) for gate in self.gates(x))
        return torch.addcmul(x * channels, x * columns, rows)  # in the memory order of x, unlike a product of gates

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The mean of the gates over channels, whatever the place: (B, 1, H, W)."""
        rows, columns, channels = self.gates(x)
        return (rows * columns + channels).mean(1, keepdim=True)

    def log_vars(self) -> dict[str, Tensor]:
        """What training logs: the share."""
        return dict(attention_share=self.share.detach())


def attention_shares(network: nn.Module) -> dict[str, float]:
    """The share of the attention to places in every `BalancedMultiTaskAttention` of a network, by module name."""
    parts = network.named_modules()
    return {name: part.share.item() for name, part in parts if isinstance(part, BalancedMultiTaskAttention)}


class DropBlock(nn.Module):
    """In training, sets squares of a map to zero, the same in all channels, and scales the rest up to the same mean.

    Centers of squares are drawn everywhere, at borders too, with probability rate / block_size² at each pixel, whatever
    the size of the map; what remains is counted over the whole batch. So did the authors; the original (arXiv
    1810.12890) draws inside the borders and for each channel.

    Args:
        rate: share of the pixels that is dropped, but for overlaps and borders.
        block_size: side of the squares, odd.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; the identity in inference, and at rate 0.

    Raises:
        ValueError: in training, a square is larger than the map: one center would drop all of it.
    """

    def __init__(self, rate: float, block_size: int = 7):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"DropBlock: rate={rate} must be in [0, 1)")
        if block_size < 1 or block_size % 2 == 0:
            raise ValueError(f"DropBlock: block_size={block_size} must be odd, so that a square has a center")
        self.rate, self.block_size = rate, block_size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        height, width = x.shape[-2:]
        size = self.block_size
        if size > min(height, width):
            raise ValueError(
                f"DropBlock: block_size={size} is larger than the map of {height} x {width} pixels; give a block_size "
                "of at most that, a rate of 0, or larger images"
            )
        centers = (torch.rand(len(x), 1, height, width, device=x.device) < self.rate / size**2).float()
        keep = 1 - F.max_pool2d(centers, size, stride=1, padding=size // 2)
        return x * (keep * (keep.numel() / (keep.sum() + 1e-7))).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, block_size={self.block_size}"


# --- the network of twelve layers ------------------------------------------------------------------------------------


class BalancedMTA(Pyramid):
    """The network of twelve layers. In the dense form it gives the maps as they are, without norms.

    Args:
        dims, depths, strides, drop_path_rate, plugins, **common: as of `Pyramid`. Plug-ins stand at the end of the
            branch, behind its last norm.
        drop_block: rate of DropBlock; one, or one for each stage.
        block_size: side of its squares, odd. In training no map with a rate may be smaller.
        dropout: rate of dropout before the last layer.
    """

    unused = ("mlp_ratio", "layer_scale")
    stem_stride = 1

    def __init__(
        self,
        dims=(64, 128, 256, 512),
        depths=(3, 3, 3, 2),
        strides=(1, 2, 4, 8),
        drop_block: float | Sequence[float] = (0.05, 0.10, 0.15, 0.20),
        block_size: int = 7,
        dropout: float = 0.5,
        plugins="BalancedMultiTaskAttention",
        **common,
    ):
        self.drop_block = per_stage("drop_block", drop_block, len(dims))
        self.block_size, self.dropout = block_size, dropout
        super().__init__(dims, depths, strides=strides, plugins=plugins, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(ConvNorm(in_channels, dim, 3, stride=self.strides[0]), nn.ReLU(inplace=True))

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Identity()  # which the first block does

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        first = index == 0 and stage > 0
        in_dim, stride = (self.dims[stage - 1], self.ratios[stage]) if first else (dim, 1)
        return BasicBlock(in_dim, dim, stride, drop_path, DropBlock(self.drop_block[stage], self.block_size))

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, after=nn.Dropout(self.dropout))

    def initialize(self, module: nn.Module) -> None:
        initialize(module)


def initialize(module: nn.Module) -> None:
    """The authors' initial weights. (In their file, the linear layers without biases stop it.)"""
    layer: Any = module
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    elif isinstance(module, SE):  # whose layers are linear in the authors' code
        for part in (layer.fc1, layer.fc2):
            nn.init.normal_(part.weight, std=0.01)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


# --- the other two networks ------------------------------------------------------------------------------------------


class PlainBlock(nn.Module):
    """3x3 convolutions with biases, batch norms and ReLU; `end`, the place of a plug-in; a maximum of 2x2 pixels.

    Args:
        in_dim, dim: channels of the input and of the output.
        convs: number of convolutions.
    """

    def __init__(self, in_dim: int, dim: int, convs: int):
        super().__init__()
        self.convs = nn.ModuleList(ConvNorm(dim if i else in_dim, dim, 3, bias=True) for i in range(convs))
        self.end: nn.Module = nn.Identity()
        self.activation = nn.ReLU(inplace=True)  # of norms, whose backward reads their input alone
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.activation(conv(x))
        return self.pool(self.end(x))


class Flatten(nn.Module):
    """A map (B, C, H, W), resized to 8x8 pixels where it is of another size, as one vector: (B, 64 C)."""

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != (8, 8):
            x = F.interpolate(x, (8, 8), mode="bilinear")
        return x.flatten(1)


class FlatHead(Head):
    """fc(after(before(x))): `before` makes a vector of the map."""

    def vector(self, x: Tensor) -> Tensor:
        return self.after(self.before(x))


class PlainCNN(Pyramid):
    """The networks that the paper compares with: blocks of convolutions and maxima, one for each stage, without
    shortcuts. In the dense form it gives the maps as they are, without norms. Smaller images are filled up to 64
    pixels.

    Args:
        dims, plugins, **common: as of `Pyramid`. Plug-ins stand before the maximum.
        convs: number of convolutions of a block.
        features: width of the vector before the last layer.
        flat: whether all pixels of the last map make the vector, through one linear layer, as in the baseline: at 64
            pixels of the image as they are, at other sizes resized. Otherwise it is their mean, after a 1x1
            convolution and before a linear layer with a ReLU.
        dropout: rate of dropout before the last layer.
    """

    unused = ("mlp_ratio", "layer_scale", "drop_path_rate")
    stem_stride = 2
    min_size, rounds_up = 64, False

    def __init__(
        self,
        dims=(32, 64, 128, 256, 512, 512),
        convs: int = 2,
        features: int = 256,
        flat: bool = False,
        dropout: float = 0.4,
        plugins=None,
        **common,
    ):
        self.convs, self.features, self.flat, self.dropout = convs, features, flat, dropout
        super().__init__(dims, (1,) * len(dims), plugins=plugins, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        return PlainBlock(self.dims[stage - 1] if stage else self.in_channels, dim, self.convs)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        dropout = nn.Dropout(self.dropout)
        if self.flat:
            after = nn.Sequential(nn.Linear(64 * dim, self.features), dropout)
            return FlatHead(self.features, num_classes, Flatten(), after)
        before = nn.Sequential(ConvNorm(dim, dim, bias=True), nn.ReLU(inplace=True))
        after = nn.Sequential(nn.Linear(dim, self.features), nn.ReLU(), dropout)
        return Head(self.features, num_classes, before, after)

    def initialize(self, module: nn.Module) -> None:
        initialize(module)


_eurosat: Any = dict(size=64, classes=10, crop=1.0)
_cbam = dict(type="CBAM", bias=False, norm=False, mean_first=True)

VARIANTS = {"balanced_mta_12": Variant(dict(), 13_115_813, 3.13, **_eurosat)}
PLAIN_VARIANTS = {
    "balanced_mta_baseline_3": Variant(
        dict(dims=(32, 64, 128), convs=1, features=512, flat=True, dropout=0.5), 4_293_642, 0.0455, **_eurosat
    ),
    "balanced_mta_cbam_7": Variant(dict(plugins=[None] + [_cbam] * 5), 9_912_212, 0.287, **_eurosat),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------


def _stage(match: re.Match) -> str:
    return f"stages.{int(match[1]) - 1}.blocks."


def _plain_block(match: re.Match) -> str:
    return f"stages.{int(match[1]) - 1}.blocks.0."


def _plain_conv(match: re.Match) -> str:
    return f"convs.{int(match[2]) - 1}.{'conv' if match[1] == 'conv' else 'norm'}."


RULES: Rules = [
    (r"^stem\.0\.", r"stem.0.conv."),
    (r"^stem\.1\.", r"stem.0.norm."),
    (r"^stage(\d)\.", _stage),
    (r"\.shortcut\.0\.", r".shortcut.conv."),
    (r"\.shortcut\.1\.", r".shortcut.norm."),
    (r"(blocks\.\d+)\.conv([12])\.", r"\1.conv\2.conv."),
    (r"(blocks\.\d+)\.bn([12])\.", r"\1.conv\2.norm."),
    (r"\.attention\.alpha$", r".end.alpha"),
    *(
        (pattern.replace("^", r"\.attention\.", 1), f".end.{name}")
        for pattern, name in BalancedMultiTaskAttention.checkpoint_rules
    ),
    (r"^fc\.", r"head.fc."),
]
PLAIN_RULES: Rules = [
    (r"^(conv|bn)6_(\d)\.", r"block6.\1\2."),
    (r"^attention6\.", r"block6.attention."),
    (r"^(conv|bn)([1-3])\.", r"block\2.\g<1>1."),  # the baseline
    (r"^block(\d)\.", _plain_block),
    (r"(?<=blocks\.0\.)(conv|bn)(\d)\.", _plain_conv),
    (r"\.attention\.channel_attention\.fc\.0\.", r".end.fc1."),
    (r"\.attention\.channel_attention\.fc\.2\.", r".end.fc2."),
    (r"\.attention\.spatial_attention\.conv\.", r".end.spatial."),
    (r"^conv7\.", r"head.before.0.conv."),
    (r"^bn7\.", r"head.before.0.norm."),
    (r"^fc1\.", r"head.after.0."),
    (r"^fc2\.", r"head.fc."),
]

register(BalancedMTA, VARIANTS, RULES)
register(PlainCNN, PLAIN_VARIANTS, PLAIN_RULES)
